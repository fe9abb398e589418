"""Time and peak memory of a cascade's super-resolution at two sizes, each in a fresh process.

    python scripts/bench_upscale.py --model toyworld

The clips are rendered; what is measured starts with a clip on disk and ends with the finer one on disk. Memory may grow
by the larger output and its latents, and by nothing else: the last line says by how much it does.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vidiff.data.toyworld.write import ToyClips
from vidiff.data.video_write import write_video
from vidiff.types import Size

SIZES = (Size(17, 64, 64, 12.0), Size(65, 128, 128, 12.0))  # become 33 frames of 256x256, 129 of 512x512


def once(model: str, size: Size, folder: Path) -> tuple[float, float]:
    """Return seconds and peak MiB of one run."""
    source, target = folder / "in.mp4", folder / "out.mp4"
    write_video(source, ToyClips(1, size).frames(0), size.fps)
    to = f"{size.width * 4}x{size.height * 4}"
    command = ["upscale", source, "--to", to, "--fps", size.fps * 2, "--model", model, "-o", target, "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "vidiff", *map(str, command)], capture_output=True, text=True, check=True
    )
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest child so far: sizes must rise
    assert after > before, done.stdout
    return seconds, after / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toyworld")
    arguments = parser.parse_args()
    peaks, outputs = [], []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            seconds, peak = once(arguments.model, size, Path(folder))
        frames, height, width = 2 * (size.frames - 1) + 1, size.height * 4, size.width * 4
        peaks.append(peak)
        outputs.append(3 * frames * height * width / 2**20)
        print(f"{width}x{height}, {frames} frames: {seconds:.1f} s, peak {peak:.0f} MiB, output {outputs[-1]:.0f} MiB")
    print(f"memory grew by {(peaks[1] - peaks[0]) / (outputs[1] - outputs[0]):.1f} times what the output grew by")


if __name__ == "__main__":
    main()
