import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from vidiff.errors import CheckpointError, ConfigError, NumericalError
from vidiff.train.ema import EMA
from vidiff.train.interrupt import StopRequest
from vidiff.train.muon import Muon, orthogonalized
from vidiff.train.optim import OptimizerConfig, Optimizers, lr_factor
from vidiff.train.run_log import samples_per_second
from vidiff.train.trainer import TrainerConfig, train
from vidiff.types import Batch

QUIET = Console(quiet=True)


class Toy:
    """Regression with dropout and noise, so that every stream of randomness shows in the loss."""

    name, size = "toy", 10

    def __init__(self, hidden=8, on_batch=lambda step: None, players=1):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.models = {"model": nn.Sequential(nn.Linear(4, hidden), nn.SiLU(), nn.Linear(hidden, 4))}
            if players == 2:
                self.models["critic"] = nn.Linear(4, 1)
        self.groups = None
        self.identity = {"hidden": hidden, "sizes": (1, 2)}
        self.on_batch = on_batch

    def batch(self, indices, seed):
        rng = np.random.default_rng(seed)
        values = np.stack([np.sin(np.arange(4) + index) for index in indices]) + 0.1 * rng.normal(
            size=(len(indices), 4)
        )
        return Batch([f"clip{index}" for index in indices], latents=torch.from_numpy(values).float())

    def loss(self, player, batch, step, generator):
        self.on_batch(step)
        x = batch.latents
        if player == "critic":
            return {"total": self.models["critic"](x).square().mean()}
        noise = torch.randn(x.shape, generator=generator)
        total = (self.models["model"](x + 0.3 * noise) - x).square().mean()
        return {"total": total, "mse": total.detach()}

    def preview(self, model):
        torch.randn(5)  # a preview may draw from the global stream; training must not notice
        return {"clip": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)}

    def finish(self, model):
        pass


def config(**kwargs):
    defaults = {
        "max_steps": 12,
        "batch_size": 4,
        "save_every": 4,
        "log_every": 1,
        "preview_every": 100,
        "ema_decay": 0.9,
        "optimizer": OptimizerConfig(lr=1e-2, muon_lr=1e-2, decay="cosine", warmup_steps=2, weight_decay=0.01),
    }
    return TrainerConfig(**(defaults | kwargs))


def rows(folder):
    return (folder / "log.jsonl").read_text()


def states(ema):
    return {name: value.clone() for name, value in ema.state_dict().items()}


def interrupt_at(step):
    def check(now):
        if now == step:
            signal.raise_signal(signal.SIGTERM)

    return check


def kill_at(step):
    def check(now):
        if now == step:
            raise MemoryError("the process dies here")

    return check


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(tmp_path, precision, accumulate):
    settings = config(mixed_precision=precision, accumulate=accumulate)
    whole = states(train(Toy(players=2), settings, tmp_path / "whole", QUIET))
    for step in (1, 5, 7, 11):
        folder = tmp_path / f"killed{step}"
        with pytest.raises(MemoryError):
            train(Toy(players=2, on_batch=kill_at(step)), settings, folder, QUIET)
        again = states(train(Toy(players=2), settings, folder, QUIET))
        assert rows(folder) == rows(tmp_path / "whole")
        assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_becomes_float32_where_it_would_take_forever(tmp_path, monkeypatch, capsys, fast):
    monkeypatch.setattr("vidiff.train.trainer.fast_bfloat16", lambda device: fast)
    monkeypatch.setattr("vidiff.train.muon.fast_bfloat16", lambda device: fast)
    seen = []
    stage = Toy(on_batch=lambda step: seen.append(torch.is_autocast_enabled("cpu")))
    train(stage, config(max_steps=2, mixed_precision="bf16"), tmp_path, Console(stderr=True))
    assert seen == [fast, fast]
    assert ("this CPU has no instructions for bf16" in capsys.readouterr().err) is not fast
    assert orthogonalized(torch.randn(1, 4, 4)).dtype == (torch.bfloat16 if fast else torch.float32)


def test_a_run_that_was_killed_outright_resumes_to_the_same_losses(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, {root!r})\n"
        "from tests.test_training import QUIET, Toy, config, train\n"
        "die = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == {step} else None\n"
        "train(Toy(on_batch=die), config(), Path({folder!r}), QUIET)\n"
    )
    root = str(Path(__file__).parents[1])
    for step, code_wanted in ((6, -signal.SIGKILL), (10, -signal.SIGKILL), (99, 0)):
        script = code.format(root=root, step=step, folder=str(tmp_path / "killed"))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == code_wanted, done.stderr
    script = code.format(root=root, step=99, folder=str(tmp_path / "whole"))
    subprocess.run([sys.executable, "-c", script], check=True)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_signal_saves_and_the_run_goes_on_from_there(tmp_path, step):
    whole = states(train(Toy(), config(), tmp_path / "whole", QUIET))
    with pytest.raises(StopRequest) as stopped:
        train(Toy(on_batch=interrupt_at(step)), config(), tmp_path / "cut", QUIET)
    assert stopped.value.exit_code == 143
    assert (tmp_path / "cut" / f"step-{step + 1:08d}").is_dir()
    again = states(train(Toy(), config(), tmp_path / "cut", QUIET))
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_previews_and_saves_do_not_change_the_run(tmp_path):
    plain = states(train(Toy(), config(), tmp_path / "a", QUIET))
    busy = states(train(Toy(), config(save_every=1, preview_every=2), tmp_path / "b", QUIET))
    assert all(torch.equal(plain[name], busy[name]) for name in plain)
    assert len(list((tmp_path / "b" / "previews").iterdir())) == 6
    assert len(list((tmp_path / "b").glob("step-*"))) == 2
    assert list((tmp_path / "b" / "tensorboard").iterdir())


def test_accumulation_equals_one_large_batch(tmp_path):
    class Plain(Toy):
        def batch(self, indices, seed):
            return super().batch(indices, 0)

        def loss(self, player, batch, step, generator):
            total = (self.models["model"](batch.latents) - batch.latents).square().mean()
            return {"total": total}

    class Exact(Plain):
        def batch(self, indices, seed):
            values = torch.stack([torch.sin(torch.arange(4.0) + index) for index in indices])
            return Batch([str(index) for index in indices], latents=values)

    ends = [states(train(Exact(), config(accumulate=n), tmp_path / str(n), QUIET)) for n in (1, 2, 4)]
    for other in ends[1:]:
        assert all(torch.allclose(ends[0][name], other[name], atol=1e-5) for name in other)


def test_a_broken_checkpoint_is_named_and_passed_over(tmp_path, capsys):
    whole = states(train(Toy(), config(), tmp_path, QUIET))
    weights = tmp_path / "step-00000012" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    again = states(train(Toy(), config(), tmp_path, Console(file=None, force_terminal=False, width=500)))
    assert "step-00000012" in capsys.readouterr().out
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_checkpoint_of_another_model_is_refused_with_the_reason(tmp_path):
    train(Toy(), config(max_steps=4), tmp_path, QUIET)
    with pytest.raises(CheckpointError, match="hidden was 8, now 9"):
        train(Toy(hidden=9), config(), tmp_path, QUIET)


def test_changed_settings_are_allowed_and_said(tmp_path, capsys):
    train(Toy(), config(max_steps=4), tmp_path, QUIET)
    train(Toy(), config(max_steps=6, save_every=2), tmp_path, Console(width=500))
    assert "trainer.max_steps was 4, now 6" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_the_clips(tmp_path, value):
    class Broken(Toy):
        def loss(self, player, batch, step, generator):
            losses = super().loss(player, batch, step, generator)
            return {"total": losses["total"] * (value if step == 6 else 1)}

    with pytest.raises(NumericalError, match=r"step 6, on the clips clip\d.*step-00000004"):
        train(Broken(), config(), tmp_path, QUIET)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000004"]


def test_the_log_holds_every_step_once(tmp_path):
    train(Toy(), config(), tmp_path, QUIET)
    logged = [json.loads(line) for line in rows(tmp_path).splitlines()]
    assert [row["step"] for row in logged] == list(range(1, 13))
    assert {"lr", "total", "mse", "grad_norm"} <= logged[0].keys()


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": 5, "accumulate": 2}, {"keep": 1}, {"max_steps": 0}])
def test_impossible_trainer_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        config(**bad)


def test_the_learning_rate_warms_up_and_decays():
    cosine = OptimizerConfig(decay="cosine", warmup_steps=10, final_lr=0.1)
    assert lr_factor(0, 110, cosine) == pytest.approx(0.1)
    assert lr_factor(10, 110, cosine) == pytest.approx(1.0)
    assert lr_factor(60, 110, cosine) == pytest.approx(0.55)
    assert lr_factor(110, 110, cosine) == pytest.approx(0.1)
    tail = OptimizerConfig(decay="linear_tail", warmup_steps=0, tail_steps=20)
    assert [lr_factor(step, 100, tail) for step in (50, 80, 90, 100)] == pytest.approx([1, 1, 0.5, 0])
    with pytest.raises(ConfigError):
        OptimizerConfig(decay="linear_tail")


def test_only_matrices_decay():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.bias.fill_(1.0)
    before = model.weight.clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Optimizers(model, OptimizerConfig(lr=0.1, weight_decay=0.5)).step(1.0)
    assert torch.allclose(model.weight, before * 0.95) and (model.bias == 1).all()


def test_muon_moves_all_directions_alike():
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16), (16, 8, 3, 3, 3)):
        weight = torch.zeros(shape, requires_grad=True)
        weight.grad = torch.randn(shape) * torch.logspace(0, -3, shape[0]).view(-1, *[1] * (len(shape) - 1))
        Muon([weight], lr=1.0).step()
        moved = torch.linalg.svdvals(weight.detach().flatten(1))
        scale = 0.2 * max(shape[0], weight[0].numel()) ** 0.5
        assert moved.max() / scale < 1.4 and moved.min() / scale > 0.3


def test_orthogonalizing_keeps_an_orthogonal_matrix_near_itself():
    q, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))
    found = orthogonalized(q[None])[0].float()
    assert torch.allclose(found / found.norm(), q / q.norm(), atol=0.05)


def test_the_moving_average_follows_its_formula():
    model = nn.Linear(2, 1)
    ema = EMA(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            model.weight += 1.0
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert torch.allclose(ema.shadow.weight, expected)


def test_throughput_is_samples_over_seconds():
    assert samples_per_second(10, 8, 4.0) == 20.0
    assert samples_per_second(10, 8, 0.0) == 0.0
