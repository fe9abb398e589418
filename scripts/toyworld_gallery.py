"""Draw docs/pictures/toyworld.jpg: one moment each of 64 clips of the toy world.

python scripts/toyworld_gallery.py --out docs/pictures/toyworld.jpg
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from vidiff.data.toyworld.draw import draw_scene
from vidiff.data.toyworld.motion import SPAN
from vidiff.data.toyworld.render import render
from vidiff.data.video_write import contact_sheet
from vidiff.files import atomic_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scenes = [draw_scene(arguments.seed, index) for index in range(64)]
    frames = render(scenes, np.array([0.6 * SPAN]), arguments.size, arguments.size, samples=3)
    sheet = contact_sheet(frames[:, 0].numpy(), columns=8)
    with atomic_path(arguments.out) as temporary:
        Image.fromarray(sheet).save(temporary, quality=88)


if __name__ == "__main__":
    main()
