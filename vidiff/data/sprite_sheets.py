"""The exact clip of a sprite, composed from the sheets that lie beside the shards.

A sheet has a row of 64 x 64 cells for each action and direction. Cells are laid over each other from back to front, on
a plain background; a clip is 17 of them at 12 frames a second.
"""

import hashlib
import io
import struct
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from vidiff.data.sprites import (
    BACKGROUNDS,
    CAPES,
    DIRECTIONS,
    FEET,
    HAIR_COLORS,
    HAIRS,
    HEADS,
    LEGS,
    SEXES,
    SKINS,
    TORSOS,
    Character,
)
from vidiff.errors import DataError

SIDE, FRAMES, FPS = 64, 17, 12
_SIZE = (13 * SIDE, 21 * SIDE)  # of a sheet
_MAX_BYTES = 4 << 20  # of its file; the largest has 55 KB
_KEPT = 128  # sheets in memory, about a megabyte each

_ROWS = {"cast": 0, "thrust": 4, "walk": 8, "slash": 12, "shoot": 16, "fall": 20}  # the first of each action
_COLUMNS = {"cast": 7, "thrust": 8, "walk": 9, "slash": 6, "shoot": 13, "fall": 6}


class Sheets:
    """The sheets of a folder.

    Raises:
        DataError: if some are missing, and when one is read that is not a sheet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sheet = lru_cache(_KEPT)(self._read)
        missing = [name for name in sheet_names() if not self._path(name).is_file()]
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of {len(sheet_names())} sheets of the sprites are missing, such as "
                f"{missing[0]}.png; copy the folder again"
            )

    @cached_property
    def digest(self) -> str:
        """Return a hash of all that clips are composed from."""
        parts = (f"{name} {hashlib.sha256(self._bytes(name)).hexdigest()}\n" for name in sheet_names())
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def clip(self, character: Character) -> np.ndarray:
        """Return the frames of a character, uint8 (17, 64, 64, 3)."""
        columns = _columns(character.action)
        row = _ROWS[character.action]
        if character.action != "fall":
            row += list(DIRECTIONS).index(character.direction)
        box = (0, row * SIDE, (int(columns.max()) + 1) * SIDE, (row + 1) * SIDE)
        strip = Image.new("RGBA", (box[2], SIDE), (*BACKGROUNDS[character.background], 255))
        for name in character.layers:
            strip = Image.alpha_composite(strip, self._sheet(name).crop(box).convert("RGBA"))
        cells = np.asarray(strip)[..., :3].reshape(SIDE, -1, SIDE, 3).swapaxes(0, 1)
        frames: np.ndarray = cells[columns]
        return frames

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def _bytes(self, name: str) -> bytes:
        path = self._path(name)
        try:
            if not path.resolve(strict=True).is_relative_to(self.folder.resolve()):
                raise DataError(f"{path}: a link that leads out of the folder of sheets; put the file itself there")
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except (OSError, RuntimeError) as error:  # the latter is a loop of links
            raise DataError(f"{path}: cannot be read: {error}") from error
        if len(data) > _MAX_BYTES:
            raise DataError(f"{path}: no sheet has more than {_MAX_BYTES >> 20} MiB; copy it again")
        return data

    def _read(self, name: str) -> Image.Image:
        data = self._bytes(name)
        try:
            image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG",))
            if image.size != _SIZE:  # before anything is decoded
                shown, wanted = (f"{width}x{height}" for width, height in (image.size, _SIZE))
                raise DataError(f"{self._path(name)}: has {shown} pixels where a sheet has {wanted}; copy it again")
            image.load()
            return image if image.mode == "P" else image.convert("RGBA")  # a palette takes a quarter of the memory
        except DataError:
            raise
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise DataError(f"{self._path(name)}: not a PNG image that can be read; copy it again") from error


@lru_cache(4)
def sheets_at(folder: Path) -> Sheets:
    """Return the sheets of a folder, opened once; raises DataError as `Sheets`."""
    return Sheets(folder)


@lru_cache(1)
def sheet_names() -> tuple[str, ...]:
    """Return every sheet that a character can need."""
    garments = {sex: [*TORSOS[sex].values(), *LEGS.values(), *FEET.values(), *HEADS.values()] for sex in SEXES}
    return (
        *(f"behind_body/cape/normal/female/cape_{color}" for color in CAPES),
        *(f"body/{sex}/{skin}" for sex in SEXES for skin in SKINS if (sex, skin) != ("female", "skeleton")),
        *(name.format(sex=sex) for sex in SEXES for name in garments[sex] if name),
        *(f"hair/{sex}/{hair}/{color}" for sex in SEXES for hair in HAIRS for color in HAIR_COLORS),
    )


def _columns(action: str) -> np.ndarray:
    """Return which cell of its row each frame is: a fall stays down, some actions go back, others start again."""
    count = _COLUMNS[action]
    if action == "fall":
        return np.minimum(np.arange(FRAMES), count - 1)
    once = np.arange(action == "walk", count)  # the first cell of a walk is a stand
    again = once[-2:0:-1] if action in ("cast", "thrust", "slash") else once[:0]
    return np.resize(np.concatenate([once, again]), FRAMES)
