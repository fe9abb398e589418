"""The toy world as training data: rendered as it is asked for, without a file. An epoch may have millions of scenes."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from vidiff.data.fates import Fates
from vidiff.data.toyworld.attributes import Scene
from vidiff.data.toyworld.captions import Caption
from vidiff.data.toyworld.draw import draw_captions, draw_layout, draw_scene
from vidiff.data.toyworld.plans import plan
from vidiff.data.toyworld.render import Window, render
from vidiff.errors import ConfigError

_RENDERER = 3  # part of every cache key: raise it when frames or captions come out differently
_CAPTIONS = 4  # of each scene: other words for the same


@dataclass(frozen=True)
class ToyWorldConfig:
    """Which scenes, and how they are rendered."""

    kind: Literal["toyworld"] = "toyworld"
    clips: int = 20_000  # scenes of an epoch
    frames: int = 17
    height: int = 64
    width: int = 64
    fps: float = 12.0
    seed: int = 0
    heldout: bool = False  # only scenes with a pair of attributes that training otherwise never shows
    samples: int = 2  # rays a pixel along each side; 1 is four times as fast, and its edges are stairs
    pictures: tuple[int, ...] = ()  # render windows of height x width out of squares this large, in turn; (): whole

    def __post_init__(self) -> None:
        for name in ("clips", "frames", "height", "width", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.fps <= 1000:
            raise ConfigError(f"fps must lie above 0 and up to 1000, got {self.fps}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")
        if any(side < max(self.height, self.width) for side in self.pictures):
            raise ConfigError(f"a window of {self.width}x{self.height} does not fit into pictures of {self.pictures}")


class ToyWorld:
    """Scenes of the toy world by index; see `vidiff.data.clips.Clips`."""

    def __init__(self, config: ToyWorldConfig):
        self.config = config
        self.fates = Fates(total=config.clips, as_is=config.clips)
        self.fingerprint = hashlib.sha256(repr((_RENDERER, config)).encode()).hexdigest()
        self.fps = config.fps

    def __len__(self) -> int:
        return self.config.clips

    def key(self, index: int) -> str:
        """Return a scene's name, for messages."""
        return f"toyworld-{self.config.seed}-{index}"

    def captions(self, index: int) -> list[str]:
        """Return the main caption, then other ways to say it."""
        return [caption.text for caption in self.told(index)]

    def told(self, index: int) -> list[Caption]:
        """Return the same captions with what each of them states."""
        return draw_captions(self.scene(index), self.config.seed, index, _CAPTIONS)

    def groups(self) -> None:
        """All clips have one shape."""

    def clip(self, index: int, start: float = 0.5) -> Tensor:
        """Return a sample, uint8 (F, H, W, 3); ``start`` has no meaning here, since a clip has just its frames."""
        config = self.config
        times = np.arange(config.frames) / config.fps
        if not config.pictures:
            return render([self.scene(index)], times, config.height, config.width, samples=config.samples)[0]
        full = config.pictures[index % len(config.pictures)]
        rng = np.random.default_rng((config.seed, index, 3))
        top, left = int(rng.integers(full - config.height + 1)), int(rng.integers(full - config.width + 1))
        window = Window(top, left, config.height, config.width)
        return render([self.scene(index)], times, full, full, window=window, samples=config.samples)[0]

    def plan(self, index: int, variant: int = 0) -> Tensor:
        """Return which things are where in a clip, (K + 1, D), see `vidiff.data.toyworld.plans`.

        Other variants than 0 are what the same captions also mean: things stand a little elsewhere.
        """
        scene, config = self.scene(index), self.config
        if variant:
            scene = replace(scene, layout=draw_layout(np.random.default_rng((config.seed, index, 4, variant))))
        return plan(scene, np.arange(config.frames) / config.fps)

    def scene(self, index: int) -> Scene:
        """Return a scene."""
        return draw_scene(self.config.seed, index, self.config.heldout)
