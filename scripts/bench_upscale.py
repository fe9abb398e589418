"""Time and peak memory of a cascade's super-resolution at two sizes, each in a fresh process.

    python scripts/bench_upscale.py --model toyworld

The clips are rendered; what is measured starts with a clip on disk and ends with the finer one on disk. Memory may grow
by the larger output and by nothing else: the last line says by how much it does, and the exit code is 1 if that is more
than --most times what the output grew by.
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

# The result is there once, as bytes, and the network sees a window at a time, so memory should grow by 1. Measured are
# 1.2 where every freed block goes back to the system (MALLOC_MMAP_THRESHOLD_=1048576), and 1.7 to 2.3 where the C
# library keeps some between windows, as by default. Float32 latents of whole clips would be 4 each, and sampling holds
# several.
MOST = 4.0

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
    parser.add_argument("--most", type=float, default=MOST, help="largest growth of memory, in outputs (%(default)g)")
    arguments = parser.parse_args()
    peaks, outputs = [], []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            seconds, peak = once(arguments.model, size, Path(folder))
        frames, height, width = 2 * (size.frames - 1) + 1, size.height * 4, size.width * 4
        peaks.append(peak)
        outputs.append(3 * frames * height * width / 2**20)
        print(f"{width}x{height}, {frames} frames: {seconds:.1f} s, peak {peak:.0f} MiB, output {outputs[-1]:.0f} MiB")
    growth = (peaks[1] - peaks[0]) / (outputs[1] - outputs[0])
    print(f"memory grew by {growth:.1f} times what the output grew by; at most {arguments.most:g} is allowed")
    if growth > arguments.most:
        sys.exit(1)


if __name__ == "__main__":
    main()
