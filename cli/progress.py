"""A progress bar for sampling, and the clip as it forms."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vidiff.cli.output import console

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vidiff.pipeline import Pipeline

OnStep = Callable[[int, int, "Tensor"], None]

_REDRAW = 0.2  # seconds from one preview to the next at least


@contextmanager
def sampling_progress(pipeline: "Pipeline", title: str, preview: bool, stage: str = "base") -> Iterator[OnStep]:
    """Show the steps of one ``stage`` of a batch on stderr and, with ``preview``, a frame of its first clip."""
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    task = progress.add_task(title, total=None)
    own = {refiner.name: refiner.pixels for refiner in pipeline.refiners}
    autoencoder = own.get(stage, pipeline.autoencoder)
    show = preview and console.is_terminal and bool(autoencoder.preview_weight.any())
    drawn = float("-inf")
    with Live(progress, console=console, transient=True, auto_refresh=True) as live:

        def on_step(done: int, total: int, x_0: "Tensor") -> None:
            nonlocal drawn
            progress.update(task, completed=done, total=total)
            if show and time.monotonic() - drawn > _REDRAW:
                drawn = time.monotonic()
                picture = autoencoder.preview(x_0[:1])[0]
                frame = picture[:, done % picture.shape[1]]  # walks through the clip as the steps go by
                pixels = ((frame + 1) * 127.5).byte().permute(1, 2, 0).cpu().numpy()
                live.update(Group(half_blocks(pixels.repeat(2, axis=0).repeat(2, axis=1)), progress))

        yield on_step


def half_blocks(pixels: "np.ndarray") -> Text:
    """Return a picture, uint8 (H, W, 3), two pixels a character: the upper half in front, the lower behind."""
    text = Text()
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=False):
        for (r, g, b), (r2, g2, b2) in zip(upper, lower, strict=True):
            text.append("▀", style=f"rgb({r},{g},{b}) on rgb({r2},{g2},{b2})")
        text.append("\n")
    return text
