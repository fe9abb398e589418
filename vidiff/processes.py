"""Several processes of one command, started together by ``accelerate launch``: which part of the work each one does."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

# Of processes that wait: one alone may work for hours, and if it fails, the launcher ends the others.
PATIENCE = timedelta(hours=12)


def _at_once() -> None:
    """Do not wait: there is nobody else."""


@dataclass(frozen=True)
class Share:
    """One process's part of the work: every ``count``-th batch, from number ``rank`` on."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = _at_once  # until all processes have come here

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that decides, prints and writes what is left in the end."""
        return self.rank == 0

    def of(self, items: Sequence[T], batch: int) -> list[T]:
        """Return this process's items. Batches stay as they are when one process does it all, and so do roundings."""
        return [item for number, item in enumerate(items) if number // batch % self.count == self.rank]


ALONE = Share()


def launched() -> Share:
    """Return the part of this process, which is everything unless a launcher started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    import torch
    from accelerate import PartialState

    # Unasked, it takes processes without a GPU for one.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Share(state.process_index, state.num_processes, state.wait_for_everyone)
