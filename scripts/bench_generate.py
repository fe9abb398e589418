"""Time and memory of one default generation, cold and warm, each in a fresh process.

python scripts/bench_generate.py [--model sprites] [--repeat 3]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a dark-skinned woman in a red robe walking right, on a green background"


def once(model: str, folder: Path) -> tuple[float, float, float]:
    """Return wall seconds, seconds of sampling and decoding, and the peak memory in MiB of one run."""
    command = [
        sys.executable,
        "-m",
        "vidiff",
        "generate",
        PROMPT,
        "--model",
        model,
        "-o",
        str(folder / "a.mp4"),
        "--json",
    ]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return wall, json.loads(done.stdout)[0]["seconds"], peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sprites")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(arguments.repeat):
            wall, inside, peak = once(arguments.model, Path(folder))
            print(f"run {index}: {wall:.1f} s in all, {inside:.1f} s sampling and decoding, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
