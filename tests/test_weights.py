import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vidiff import checkpoint
from vidiff.config import read_yaml
from vidiff.errors import CheckpointError, NumericalError


def module_of(seed: int) -> nn.Module:
    module = nn.Linear(3, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def test_a_model_folder_comes_back_as_it_was_saved(tmp_path):
    module = module_of(0)
    checkpoint.save_model(tmp_path / "export", {"kind": "no", "lr": 1e-4}, dict(module.state_dict()))
    assert read_yaml(tmp_path / "export" / "config.yaml") == {"kind": "no", "lr": 1e-4}
    other = module_of(1)
    checkpoint.load_weights(other, tmp_path / "export")
    assert torch.equal(other.weight, module.weight)
    assert (tmp_path / "export" / "model.safetensors").stat().st_mode & 0o777 == (
        tmp_path / "export" / "config.yaml"
    ).stat().st_mode & 0o777


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_cast_to_the_dtype_of_the_module(tmp_path, dtype):
    module = module_of(0)
    tensors = {**module.state_dict()}
    checkpoint.save_model(tmp_path, {}, tensors, dtype=dtype)
    assert load_file(tmp_path / "model.safetensors")["weight"].dtype == dtype
    other = module_of(1)
    checkpoint.load_weights(other, tmp_path / "model.safetensors")
    assert other.weight.dtype == torch.float32
    assert torch.equal(other.weight, module.weight.to(dtype).float())


def test_a_cast_that_overflows_is_refused_both_ways(tmp_path):
    with pytest.raises(NumericalError, match="w"):
        checkpoint.save_model(tmp_path / "a", {}, {"w": torch.tensor([1e6])}, dtype=torch.float16)
    assert not (tmp_path / "a").exists()
    module = nn.Linear(1, 1, bias=False).half()
    checkpoint.save_model(tmp_path / "b", {}, {"weight": torch.tensor([[1e6]])})
    with pytest.raises(CheckpointError, match="not finite: weight"):
        checkpoint.load_weights(module, tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.pop("bias"), "missing: bias"),
        (lambda t: t.update(more=torch.ones(1)), "unexpected: more"),
        (lambda t: t.update(bias=torch.ones(3)), r"of the wrong shape: bias \(3,\), expected \(2,\)"),
        (lambda t: t.update(bias=torch.ones(2, dtype=torch.int64)), "of the wrong kind of number: bias"),
        (lambda t: t.update(bias=torch.tensor([1.0, float("nan")])), "not finite: bias"),
        (lambda t: t.update(bias=torch.tensor([1.0, float("inf")])), "not finite: bias"),
        (lambda t: (t.pop("bias"), t.update(more=torch.ones(1))), "missing: bias; unexpected: more"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_the_module_is_untouched(tmp_path, change, what):
    module = module_of(0)
    tensors = dict(module_of(1).state_dict())
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=what):
        checkpoint.load_weights(module, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), module_of(0).parameters(), strict=True))


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"\xff" * 64, None])
def test_what_is_no_weights_file_is_refused_by_name(tmp_path, data):
    path = tmp_path / "model.safetensors"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.load_weights(module_of(0), path)


def test_only_the_first_names_of_many_are_listed(tmp_path):
    save_file({f"more.{i}": torch.ones(1) for i in range(9)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"more\.2 and 6 more"):
        checkpoint.load_weights(module_of(0), tmp_path)


def test_tied_weights_are_saved_under_both_names(tmp_path):
    w = torch.arange(3.0)
    checkpoint.save_model(tmp_path, {}, {"a": w, "b": w, "c": w[1:]})
    read = load_file(tmp_path / "model.safetensors")
    assert torch.equal(read["a"], w) and torch.equal(read["b"], w) and torch.equal(read["c"], w[1:])


def test_a_killed_export_is_no_model(tmp_path, monkeypatch):
    checkpoint.save_model(tmp_path, {"a": 1}, {"w": torch.ones(1)})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_model(tmp_path, {"a": 2}, {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        checkpoint.model_hash(tmp_path)


def test_the_hash_of_a_model_changes_with_config_weights_and_parts_and_nothing_else(tmp_path):
    def build(name: str, config: int = 1, weight: float = 1.0, part: float = 1.0) -> str:
        checkpoint.save_model(tmp_path / name / "autoencoder", {}, {"w": torch.tensor([part])})
        checkpoint.save_model(tmp_path / name, {"a": config}, {"w": torch.tensor([weight])})
        return checkpoint.model_hash(tmp_path / name)

    hashes = {build("a"), build("b", config=2), build("c", weight=2.0), build("d", part=2.0)}
    assert len(hashes) == 4 and build("e") in hashes
    (tmp_path / "e" / "README.md").write_text("words")
    assert checkpoint.model_hash(tmp_path / "e") == build("f")
    shutil.move(tmp_path / "f" / "autoencoder", tmp_path / "f" / "decoder")
    assert checkpoint.model_hash(tmp_path / "f") not in hashes
