"""The training loop. It knows steps, gradients and files; a Stage knows what is trained.

Whatever is random follows from (seed, step), and the order of the samples is a pure function of the step, so a run
that was killed at any moment continues to the same losses, bit for bit on the CPU.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from vidiff import checkpoint
from vidiff.data.order import batch_indices, grouped_batch_indices
from vidiff.errors import CheckpointError, ConfigError, NumericalError, UserError
from vidiff.processes import PATIENCE
from vidiff.tensors import fast_bfloat16
from vidiff.train.ema import EMA
from vidiff.train.interrupt import StopRequest, deferred_signals
from vidiff.train.optim import OptimizerConfig, Optimizers, lr_factor
from vidiff.train.run_log import RunLog
from vidiff.train.stage import Evaluation, Stage
from vidiff.types import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TrainerConfig:
    """How long and how a stage is trained."""

    max_steps: int = 10_000
    batch_size: int = 8  # samples a step, over all processes and accumulated parts
    accumulate: int = 1  # parts that a step's batch is split into
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    save_every: int = 1_000
    keep: int = 2  # checkpoints on disk
    log_every: int = 50
    preview_every: int = 1_000

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "accumulate", "save_every", "log_every", "preview_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"batch_size {self.batch_size} cannot be split into accumulate = {self.accumulate} parts")
        if self.keep < 2:
            raise ConfigError(f"keep must be at least 2, got {self.keep}: a kill may come while the newest is written")


class Player(nn.Module):
    """One trained model of a stage. Its forward is the loss, so that one wrapper serves any number of devices."""

    def __init__(self, stage: Stage, name: str):
        super().__init__()
        self.model = stage.models[name]
        self._loss = (stage, name)  # in a tuple, since a stage holds the other players' modules too

    def forward(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        stage, name = self._loss
        return stage.loss(name, batch, step, generator)


def train(stage: Stage, config: TrainerConfig, run_dir: Path, console: Console) -> EMA:
    """Train ``stage`` up to ``config.max_steps``, from its newest whole checkpoint in ``run_dir`` if there is one.

    Returns:
        The moving average of ``stage.models["model"]``.

    Raises:
        NumericalError: if a loss or gradient is not finite; the weights on disk are those of the last checkpoint.
        CheckpointError: if the checkpoint belongs to another model or other data.
        StopRequest: after Ctrl-C or SIGTERM, with everything saved.
    """
    run = _Run(stage, config, run_dir, console)
    with run.log, deferred_signals() as stopping:
        run.resume()
        saved = run.step
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as loader:
            for step, batch in _prefetched(loader, run):
                run.train_step(step, batch)
                if stopping.signum is not None or run.step % config.save_every == 0 or run.step == config.max_steps:
                    run.save()
                    saved = run.step
                if stopping.signum is not None:
                    run.log.note(f"{stage.name}: stopped at step {saved}; the same command goes on from there")
                    raise StopRequest(stopping.signum)
    return run.ema


class _Run:
    """The mutable state of one call of `train`."""

    def __init__(self, stage: Stage, config: TrainerConfig, run_dir: Path, console: Console):
        self.stage, self.config, self.run_dir = stage, config, run_dir
        self.accelerator = _accelerator(config)
        share = config.accumulate * self.accelerator.num_processes
        if config.batch_size % share:
            raise ConfigError(
                f"batch_size {config.batch_size} cannot be shared by {share} parts (processes x accumulate)"
            )
        self.micro = config.batch_size // share
        self.log = RunLog(run_dir, stage.name, config.max_steps, config.batch_size, console)
        if self.accelerator.mixed_precision != config.mixed_precision:
            self.log.note(f"{stage.name}: this CPU has no instructions for bf16, which float32 replaces")
        self.step = 0
        device = self.accelerator.device
        for model in stage.models.values():
            model.to(device).train()
        self.ema = EMA(stage.models["model"], config.ema_decay)
        self.evaluation: Evaluation | None = getattr(stage, "evaluation", None)
        self.players: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Optimizers] = {}
        for name, model in stage.models.items():
            self.optimizers[name] = Optimizers(model, config.optimizer)
            self.players[name] = self.accelerator.prepare_model(Player(stage, name))

    def batch(self, step: int, part: int) -> Batch:
        """Return this process's part of the batch of ``step``."""
        size, seed, groups = self.config.batch_size, self.config.seed, self.stage.groups
        if groups is None:
            indices = batch_indices(self.stage.size, size, seed, step)
        else:
            indices = grouped_batch_indices(groups, size, seed, step)
        start = (self.accelerator.process_index * self.config.accumulate + part) * self.micro
        return self.stage.batch(indices[start : start + self.micro], _seed(seed, step, start))

    def train_step(self, step: int, parts: list[Batch]) -> None:
        factor = lr_factor(step, self.config.max_steps, self.config.optimizer)
        values: dict[str, float] = {"lr": factor * self.config.optimizer.lr}
        for number, (name, player) in enumerate(self.players.items()):
            values |= self._update(name, player, number, step, parts, factor)
        self.step = step + 1
        self.ema.update(self.stage.models["model"], self.step)
        self.log.advance(self.step)
        main = self.accelerator.is_main_process
        if main and (self.step % self.config.log_every == 0 or self.step == self.config.max_steps):
            self.log.scalars(self.step, values)
        if main and (self.step % self.config.preview_every == 0 or self.step == self.config.max_steps):
            self.log.clips(self.step, self.stage.preview(self.ema.shadow))
        evaluation = self.evaluation
        if main and evaluation and (self.step % evaluation.every == 0 or self.step == self.config.max_steps):
            self._evaluate(evaluation)

    def _evaluate(self, evaluation: Evaluation) -> None:
        """Measure the moving average. What cannot be measured must not end the training, or change it."""
        try:
            with self.log.paused():
                values = evaluation.measure(self.ema.shadow, self.step)
            self.log.measured(self.step, values)
        except UserError as error:
            self.log.note(f"{self.stage.name} {self.step}: not evaluated: {error}")

    def _update(
        self, name: str, player: nn.Module, number: int, step: int, parts: list[Batch], factor: float
    ) -> dict[str, float]:
        """Take one optimizer step of one player and return its losses, averaged over the parts."""
        sums: dict[str, float] = {}
        for part, batch in enumerate(parts):
            last = part == len(parts) - 1
            seed = _seed(self.config.seed, step, number, self.accelerator.process_index, part)
            generator = torch.Generator(self.accelerator.device).manual_seed(seed)
            with nullcontext() if last else self.accelerator.no_sync(player):
                losses = player(_on(batch, self.accelerator.device), step, generator)
                self._check(losses, step, batch)
                self.accelerator.backward(losses["total"] / len(parts))
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + value.item() / len(parts)
        norm = torch.nn.utils.clip_grad_norm_(player.parameters(), self.config.clip_norm)
        if not torch.isfinite(norm):
            raise NumericalError(self._stopped("a gradient is", step, [key for batch in parts for key in batch.keys]))
        self.optimizers[name].step(factor)
        prefix = "" if name == "model" else f"{name}/"
        return {f"{prefix}{key}": value for key, value in sums.items()} | {f"{prefix}grad_norm": norm.item()}

    def _check(self, losses: dict[str, Tensor], step: int, batch: Batch) -> None:
        if not math.isfinite(losses["total"].item()):
            broken = [key for key, value in losses.items() if not torch.isfinite(value)]
            raise NumericalError(self._stopped(f"the loss ({', '.join(broken)}) is", step, batch.keys))

    def _stopped(self, what: str, step: int, keys: list[str]) -> str:
        good = max(self.run_dir.glob("step-*"), default=None)
        kept = f"the last good checkpoint is {good}" if good else "no checkpoint had been saved yet"
        return f"{self.stage.name}: {what} not finite at step {step}, on the clips {', '.join(keys)}; {kept}"

    def save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        tensors = {"ema": self.ema.state_dict()}
        if state := getattr(self.stage, "state", None):
            tensors["state"] = state
        for name, model in self.stage.models.items():
            tensors[name] = model.state_dict()
            for kind, optimizer in self.optimizers[name].members.items():
                tensors[f"{name}-{kind}"] = checkpoint.flatten_optimizer(optimizer)
        checkpoint.save(self.run_dir, self.step, tensors, self._meta(), keep=self.config.keep)

    def resume(self) -> None:
        found = checkpoint.latest(self.run_dir, on_skip=self.log.note)
        if found is not None:
            self._agree(found)
            for name, model in self.stage.models.items():
                _load_state(model, found.tensors(name), found.path)
                for kind, optimizer in self.optimizers[name].members.items():
                    checkpoint.restore_optimizer(optimizer, found.tensors(f"{name}-{kind}"))
            _load_state(self.ema.shadow, found.tensors("ema"), found.path)
            if state := getattr(self.stage, "state", None):
                state.update(found.tensors("state"))
            self.step = found.step
            self.log.note(f"{self.stage.name}: going on from step {self.step}")
        self.log.begin(self.step)

    def _meta(self) -> dict[str, Any]:
        return {
            "identity": self.stage.identity,
            "trainer": asdict(self.config),
            "threads": torch.get_num_threads(),
            "processes": self.accelerator.num_processes,
        }

    def _agree(self, found: checkpoint.Checkpoint) -> None:
        """Refuse a checkpoint of another model or other data; say which settings of the trainer changed."""
        differing = list(differences(found.meta["identity"], self.stage.identity))
        if differing:
            raise CheckpointError(
                f"{found.path}: does not fit this run: {'; '.join(differing)}. "
                "Use another run folder, or the config it was trained with"
            )
        now = self._meta()
        for key in ("trainer", "threads", "processes"):
            for line in differences({key: found.meta[key]}, {key: now[key]}):
                self.log.note(f"{self.stage.name}: since step {found.step} changed: {line}")


def _prefetched(loader: ThreadPoolExecutor, run: _Run) -> Iterator[tuple[int, list[Batch]]]:
    """Yield each step with its batch, which was read while the step before it computed."""

    def read(step: int) -> list[Batch]:
        return [run.batch(step, part) for part in range(run.config.accumulate)]

    upcoming = loader.submit(read, run.step) if run.step < run.config.max_steps else None
    for step in range(run.step, run.config.max_steps):
        assert upcoming is not None
        batch = upcoming.result()
        upcoming = loader.submit(read, step + 1) if step + 1 < run.config.max_steps else None
        yield step, batch


def device() -> torch.device:
    """Return where `train` puts what it trains, in this process."""
    from accelerate import PartialState

    found: torch.device = PartialState(timeout=PATIENCE).device
    return found


def is_main_process() -> bool:
    """Return whether this is the process that writes what `train` leaves."""
    from accelerate import PartialState

    found: bool = PartialState(timeout=PATIENCE).is_main_process
    return found


def _accelerator(config: TrainerConfig) -> "Accelerator":
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    # The state is one a process and keeps the first precision it was given; stages may differ in theirs.
    AcceleratorState._reset_state()
    # Single frames leave layers along time without a gradient.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
    patient = InitProcessGroupKwargs(timeout=PATIENCE)  # one process measures held-out clips, and the others wait
    precision = config.mixed_precision
    if precision == "bf16" and not fast_bfloat16(device()):
        precision = "no"
    return Accelerator(mixed_precision=precision, kwargs_handlers=[parallel, patient])


def _seed(*parts: int) -> int:
    """Mix ``parts`` into one seed, so that neighboring steps share no stream (SplitMix64; Steele et al., 2014)."""
    mixed = 0
    for part in parts:
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1  # torch and numpy take 63 bits alike


def _on(batch: Batch, device: torch.device) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return Batch(**{name: value.to(device) if hasattr(value, "to") else value for name, value in values.items()})


def _load_state(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the model: {str(error).splitlines()[-1].strip()}") from error


def differences(saved: Any, now: Any) -> Iterator[str]:
    """Yield what differs between settings read from JSON and those of now, one "place was ..., now ..." each.

    A setting that is missing equals None, so that new ones may be added to stages that were trained without.
    """
    yield from _differences(saved, _plain(now), "")


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON gives it back, so that a tuple equals the list it was saved as."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _differences(saved: Any, now: Any, place: str) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in [*saved, *(key for key in now if key not in saved)]:
            yield from _differences(saved.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif saved != now:
        yield f"{place} was {saved}, now {now}"
