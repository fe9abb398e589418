"""What a run leaves to look at: log.jsonl, TensorBoard, pictures, and a progress bar while it lasts."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from vidiff import files

LOG_NAME = "log.jsonl"


class RunLog:
    """Writes the log of one stage. ``log.jsonl`` holds no clock, so that equal runs leave equal files."""

    def __init__(self, run_dir: Path, name: str, max_steps: int, batch_size: int, console: Console):
        from torch.utils.tensorboard import SummaryWriter

        self.run_dir, self.batch_size, self.console = run_dir, batch_size, console
        self.writer = SummaryWriter(str(run_dir / "tensorboard"))
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(name, total=max_steps, speed="", losses="")
        self.name = name
        self._since = time.monotonic()
        self._since_step = 0

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()
        self.writer.close()

    def begin(self, step: int) -> None:
        """Start at ``step``; rows of a longer run that was cut off behind its last checkpoint are dropped."""
        self.progress.update(self.task, completed=step)
        self._since, self._since_step = time.monotonic(), step
        path = self.run_dir / LOG_NAME
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _is_up_to(line, step)]
            files.write_text(path, "".join(line + "\n" for line in kept))

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one row, and show it."""
        speed = samples_per_second(step - self._since_step, self.batch_size, time.monotonic() - self._since)
        self._since, self._since_step = time.monotonic(), step
        files.append_line(self.run_dir / LOG_NAME, json.dumps({"step": step, **values}))
        for name, value in (values | {"samples_per_second": speed}).items():
            self.writer.add_scalar(name, value, step)
        losses = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.progress.update(self.task, speed=f"{speed:.1f} samples/s", losses=losses)
        if not self.console.is_terminal:
            self.console.print(f"{self.name} {step} {speed:.1f} samples/s {losses}", soft_wrap=True, highlight=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out of the throughput."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - started

    def measured(self, step: int, values: dict[str, float]) -> None:
        """Write and show the values of an evaluation; JSON holds no NaN, so that only finite ones are kept."""
        named = {f"eval/{name}": value for name, value in values.items() if math.isfinite(value)}
        files.append_line(self.run_dir / LOG_NAME, json.dumps({"step": step, **named}))
        for name, value in named.items():
            self.writer.add_scalar(name, value, step)
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.note(f"{self.name} {step} evaluation: {shown}")

    def clips(self, step: int, clips: dict[str, Tensor]) -> None:
        """Write a contact sheet of each clip (uint8 (F, H, W, 3)), as PNG and to TensorBoard."""
        from vidiff.data.video_write import contact_sheet, write_png

        for name, clip in clips.items():
            sheet = contact_sheet(clip.numpy())
            write_png(self.run_dir / "previews" / f"step-{step:08d}-{name}.png", sheet)
            self.writer.add_image(name, torch.from_numpy(sheet), step, dataformats="HWC")

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


def samples_per_second(steps: int, batch_size: int, seconds: float) -> float:
    """Return the throughput over a span of ``steps`` that took ``seconds``."""
    return steps * batch_size / seconds if seconds > 0 else 0.0


def _is_up_to(line: str, step: int) -> bool:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError:  # the torn last line of a killed run
        return False
    return isinstance(row, dict) and row.get("step", step + 1) <= step
