"""Time and memory of one default generation, each in a fresh process, and what `--preview` adds in a terminal.

python scripts/bench_generate.py [--model toyworld] [--repeat 3]
"""

import argparse
import json
import os
import pty
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PROMPT = "a shiny red ball rolls right across green grass at sunset while the camera moves forward"


def once(model: str, folder: Path, *options: str) -> tuple[float, float, float]:
    """Return wall seconds, seconds of sampling and decoding, and the largest memory in MiB of any run so far."""
    command = [sys.executable, "-m", "vidiff", "generate", PROMPT, "--model", model, "-o", str(folder / "a.mp4")]
    screen, terminal = pty.openpty()  # progress and previews are drawn for terminals only
    threading.Thread(target=_drain, args=(screen,), daemon=True).start()
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--json", *options], stdout=subprocess.PIPE, stderr=terminal, text=True, check=True
    )
    wall = time.monotonic() - started
    os.close(terminal)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return wall, json.loads(done.stdout)[0]["seconds"], peak


def _drain(screen: int) -> None:
    try:
        while os.read(screen, 65536):
            pass
    except OSError:  # the last writer has gone
        os.close(screen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toyworld")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    inside: dict[str, list[float]] = {"": [], "--preview": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeat):
            for option, seconds in inside.items():  # in turn: the machine's mood is the same for both
                wall, sampling, peak = once(arguments.model, Path(folder), *option.split())
                seconds.append(sampling)
                print(
                    f"{option or 'plain':9} {wall:.1f} s in all, {sampling:.1f} s sampling and decoding, {peak:.0f} MiB"
                )
    plain, shown = (statistics.median(seconds) for seconds in inside.values())
    print(f"medians: {plain:.2f} s; with --preview {shown:.2f} s, {shown / plain - 1:+.1%}")


if __name__ == "__main__":
    main()
