import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vidiff import checkpoint, files
from vidiff.errors import CheckpointError, NumericalError, ResourceError

FILES = ["MANIFEST.json", "meta.json", "model.safetensors", "optimizer.safetensors"]


def groups(step: int) -> dict[str, dict[str, Tensor]]:
    return {"model": {"w": torch.full((3,), float(step))}, "optimizer": {"0.step": torch.tensor(float(step))}}


def save(run_dir: Path, step: int, **options: Any) -> Path:
    return checkpoint.save(run_dir, step, groups(step), {"seed": 1}, **options)


def unexpected(line: str) -> None:
    raise AssertionError(line)


def steps(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def newest(run_dir: Path, on_skip: Callable[[str], None] = unexpected) -> int:
    """Return the newest step after checking that its tensors are its own."""
    found = checkpoint.latest(run_dir, on_skip)
    assert found is not None
    for group, named in groups(found.step).items():
        read = found.tensors(group)
        assert read.keys() == named.keys() and all(torch.equal(read[name], named[name]) for name in named)
    return found.step


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path = save(tmp_path / "run", 12)
    assert path.name == "step-00000012" and sorted(p.name for p in path.iterdir()) == FILES
    found = checkpoint.latest(tmp_path / "run", unexpected)
    assert found == checkpoint.Checkpoint(path, 12, {"seed": 1})
    assert newest(tmp_path / "run") == 12
    with pytest.raises(CheckpointError, match="holds no ema, only model, optimizer"):
        found.tensors("ema")


def test_there_is_no_latest_in_an_empty_or_absent_folder(tmp_path):
    assert checkpoint.latest(tmp_path, unexpected) is None
    assert checkpoint.latest(tmp_path / "absent", unexpected) is None and not (tmp_path / "absent").exists()


def test_order_is_by_step_and_not_by_time(tmp_path):
    for step in (100_000_000, 99_999_999):
        save(tmp_path, step)
    assert newest(tmp_path) == 100_000_000


def test_pruning_keeps_the_newest_and_never_less_than_two(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
        assert steps(tmp_path) == [f"step-{s:08d}" for s in range(max(1, step - 1), step + 1)]
    with pytest.raises(ValueError, match="at least 2"):
        save(tmp_path, 6, keep=1)
    save(tmp_path, 6, keep=3)
    assert len(steps(tmp_path)) == 3


def test_pruning_does_not_count_damaged_checkpoints(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "model.safetensors").unlink()
    save(tmp_path, 3)
    assert {"step-00000001", "step-00000003"} <= set(steps(tmp_path))


def test_a_checkpoint_saved_below_a_higher_step_is_not_pruned(tmp_path):
    for step in (8, 9, 2):
        save(tmp_path, step)
    assert "step-00000002" in steps(tmp_path)


def test_pruning_survives_a_folder_that_cannot_be_removed(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    rename = os.rename

    def stuck(source: Any, target: Any) -> None:
        if Path(source).name == "step-00000001":
            raise OSError(errno.EACCES, "stuck")
        rename(source, target)

    monkeypatch.setattr(os, "rename", stuck)
    save(tmp_path, 3)
    assert newest(tmp_path) == 3 and len(steps(tmp_path)) == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "remove"])
def test_a_damaged_file_makes_the_previous_checkpoint_the_latest_and_is_named(tmp_path, name, harm):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 4
    match harm:
        case "remove":
            file.unlink()
        case "truncate":
            file.write_bytes(data[:-1])
        case "empty":
            file.write_bytes(b"")
        case _:
            file.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        checkpoint.read(tmp_path / "step-00000002")
    # A flipped hash in the manifest accuses the file that it is the hash of.
    assert name in str(caught.value) or (name, harm) == ("MANIFEST.json", "flip")
    skipped: list[str] = []
    assert newest(tmp_path, skipped.append) == 1
    assert len(skipped) == 1 and skipped[0].startswith(str(caught.value))
    assert [n.split("-")[0] for n in steps(tmp_path)] == [".bad", "step"]
    assert newest(tmp_path) == 1


def test_no_flipped_bit_of_a_manifest_is_believed(tmp_path):
    path = save(tmp_path, 1)
    raw = (path / "MANIFEST.json").read_bytes()
    for i in range(len(raw)):
        (path / "MANIFEST.json").write_bytes(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


def test_a_newer_format_is_refused_and_nothing_is_touched(tmp_path):
    save(tmp_path, 1)
    manifest = save(tmp_path, 2) / "MANIFEST.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 9}))
    (tmp_path / "step-00000003").mkdir()
    before = steps(tmp_path)
    with pytest.raises(CheckpointError, match="format 9, this vidiff reads up to 1"):
        checkpoint.latest(tmp_path, unexpected)
    assert steps(tmp_path) == before


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    manifest = save(tmp_path, 1) / "MANIFEST.json"
    data = json.loads(manifest.read_text())
    data["files"]["../../secret"] = {"size": 0, "sha256": "0"}
    manifest.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(tmp_path / "step-00000001")


def test_every_file_is_on_the_disk_before_the_manifest_and_the_folder_before_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("rename"), rename(a, b))[1])
    save(tmp_path, 1)
    *written, manifest, folder, renamed, parent = [Path(call).name for call in calls]
    assert sorted(written) == FILES[1:] and manifest == FILES[0]
    assert folder.startswith(".tmp-1-") and renamed == "rename" and parent == tmp_path.name


class Killed(BaseException):
    """Ends the process in a test's mind: nothing after it may touch the disk."""


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> list[int]:
    """Raise Killed at the ``moment``-th call that orders the disk's state, and let no cleanup run after it."""
    count = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] >= moment:
                raise Killed
            return call(*args, **kwargs)

        return wrapper

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    remove = files.remove
    monkeypatch.setattr(files, "remove", lambda path: None if count[0] >= moment else remove(path))
    return count


@pytest.mark.parametrize("step", [3, 2])  # a new step, and one that is there already
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, step):
    finished = False
    for moment in range(1, 40):
        run_dir = tmp_path / str(moment)
        save(run_dir, 1)
        save(run_dir, 2)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment)
            try:
                save(run_dir, step)
                finished = True
            except Killed:
                pass
        assert newest(run_dir) in (2, step)
        save(run_dir, 4)
        assert newest(run_dir) == 4 and not [name for name in steps(run_dir) if name.startswith(".")]
        if finished:
            break
    assert finished and moment > 5


KILLER = """
import os, signal, sys, torch
from vidiff import checkpoint
run_dir, tensors = sys.argv[1], {"model": {"w": torch.ones(3)}}
moment = 0
while True:
    moment += 1
    child = os.fork()
    if child == 0:
        calls = 0
        def deadly(call):
            def wrapper(*args, **kwargs):
                global calls
                calls += 1
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)
            return wrapper
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            setattr(os, name, deadly(getattr(os, name)))
        checkpoint.save(run_dir, 10 + moment, tensors, {})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = checkpoint.latest(run_dir, lambda line: sys.exit(line))
    assert found is not None and torch.equal(found.tensors("model")["w"], torch.ones(3))
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0 and found.step == 10 + moment
        break
print(moment)
"""


def test_sigkill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 1, {"model": {"w": torch.ones(3)}}, {})
    checkpoint.save(tmp_path, 2, {"model": {"w": torch.ones(3)}}, {})
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", KILLER, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8
    assert not [name for name in steps(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_disk_is_named_and_the_old_checkpoints_stay(tmp_path, monkeypatch, call, number):
    save(tmp_path, 1)
    save(tmp_path, 2)

    def failing(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(ResourceError, match="step-00000003") as caught:
            save(tmp_path, 3)
    if number == errno.ENOSPC:
        assert "needed" in str(caught.value) and "free" in str(caught.value)
    assert steps(tmp_path) == ["step-00000001", "step-00000002"] and newest(tmp_path) == 2


def test_a_disk_that_is_too_small_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 10)
    with pytest.raises(ResourceError, match=r"needed, 10 bytes free"):
        save(tmp_path, 1)
    assert steps(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tensors_that_are_not_finite_are_named_and_not_saved(tmp_path, value):
    bad = {"model": {"good": torch.ones(2), "bad": torch.tensor([1.0, value])}}
    with pytest.raises(NumericalError, match=r"model at step 3: .*bad"):
        checkpoint.save(tmp_path, 3, bad, {})
    assert steps(tmp_path) == []


def test_large_finite_numbers_whose_sum_overflows_are_saved(tmp_path):
    tensors = {"model": {"w": torch.full((4,), 3e38), "h": torch.full((4,), 6e4, dtype=torch.float16)}}
    checkpoint.save(tmp_path, 1, tensors, {})
    found = checkpoint.latest(tmp_path, unexpected)
    assert found is not None and torch.equal(found.tensors("model")["w"], tensors["model"]["w"])


def train(module: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        optimizer.zero_grad()
        module(torch.randn(4, 3, generator=generator)).square().mean().backward()
        optimizer.step()


def module_of(seed: int) -> nn.Module:
    module = nn.Linear(3, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ],
)
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path, make):
    unbroken = module_of(0)
    optimizer = make(unbroken.parameters())
    train(unbroken, optimizer, 3, seed=1)
    tensors = {"model": dict(unbroken.state_dict()), "optimizer": checkpoint.flatten_optimizer(optimizer)}
    checkpoint.save(tmp_path, 3, tensors, {})
    train(unbroken, optimizer, 3, seed=2)

    found = checkpoint.latest(tmp_path, unexpected)
    assert found is not None
    resumed = module_of(7)
    resumed.load_state_dict(found.tensors("model"))
    again = make(resumed.parameters())
    checkpoint.restore_optimizer(again, found.tensors("optimizer"))
    train(resumed, again, 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))


def test_a_flat_optimizer_state_has_one_tensor_a_name():
    module = module_of(0)
    optimizer = torch.optim.AdamW(module.parameters())
    assert checkpoint.flatten_optimizer(optimizer) == {}
    train(module, optimizer, 1, seed=0)
    flat = checkpoint.flatten_optimizer(optimizer)
    assert sorted(flat) == [f"{i}.{name}" for i in (0, 1) for name in ("exp_avg", "exp_avg_sq", "step")]
    assert flat["1.exp_avg"].shape == (2,) and flat["0.step"].item() == 1


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"5.exp_avg": torch.ones(2)}, "5.exp_avg"),
        ({"x.exp_avg": torch.ones(2)}, "x.exp_avg"),
        ({"0.exp_avg": torch.ones(2, 4)}, r"0.exp_avg is \(2, 4\), its parameter \(2, 3\)"),
    ],
)
def test_a_foreign_optimizer_state_is_refused_by_name(tensors, what):
    module = module_of(0)
    optimizer = torch.optim.AdamW(module.parameters())
    train(module, optimizer, 1, seed=0)
    with pytest.raises(CheckpointError, match=what):
        checkpoint.restore_optimizer(optimizer, tensors)
    assert len(checkpoint.flatten_optimizer(optimizer)) == 6
