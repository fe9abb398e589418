"""Several processes of one command."""

from types import SimpleNamespace

import accelerate

from vidiff.processes import ALONE, launched
from vidiff.train.trainer import TrainerConfig, _accelerator


def test_processes_wait_for_hours_for_one_that_works_alone(monkeypatch):
    given = {}
    state = SimpleNamespace(process_index=1, num_processes=2, wait_for_everyone=None)
    monkeypatch.setattr(accelerate, "PartialState", lambda **options: given.update(options) or state)
    assert launched() == ALONE and not given
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched().rank == 1 and given["timeout"].total_seconds() > 3600
    assert _accelerator(TrainerConfig()).init_handler.timeout == given["timeout"]
