"""LoRA files: the alpha of PEFT's config, and bytes that are no LoRA."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.loras import DIM, MODULES, written
from vidiff import weights
from vidiff.errors import CheckpointError
from vidiff.interop.lora import read_lora

CONFIG = {"r": 3, "lora_alpha": 6, "alpha_pattern": {"blocks.1.attn1.to_q": 12, "^proj_out": 3}}


@pytest.mark.parametrize("place", ["beside", "diffusers_header", "plain_header", "native_beside"])
def test_the_alpha_of_pefts_config_is_respected(tmp_path, place):
    path, header, dialect = tmp_path / "adapter_model.safetensors", None, "peft"
    config = dict(CONFIG)
    if place == "diffusers_header":
        header = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    elif place == "plain_header":
        header, config = {"lora_alpha": "6", "r": "3"}, {**config, "alpha_pattern": {}}
    else:
        if place == "native_beside":
            dialect = "diffsynth"
            config["alpha_pattern"] = {"blocks.1.self_attn.q": 12, "^head.head": 3}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lora = read_lora(written(path, dialect, header=header).parent)  # the folder names the file
    special = {"blocks.1.attn1.to_q": 4.0, "proj_out": 1.0} if place != "plain_header" else {}
    assert {name: change.factor for name, change in lora.changes.items()} == dict.fromkeys(MODULES, 2.0) | special
    keyed = read_lora(written(path, dialect, alpha=3.0, header=header))
    assert {change.factor for change in keyed.changes.values()} == {1.0}  # a key goes before the config


def test_rank_stabilized_adapters_divide_by_the_root_of_the_rank(tmp_path):
    path = written(tmp_path / "adapter_model.safetensors", "peft", rank=4)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 6, "use_rslora": True}))
    assert {change.factor for change in read_lora(path).changes.values()} == {3.0}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"r": 8, "lora_alpha": 8}, "has rank 3, but its config says 8"),
        ({"r": 3, "lora_alpha": "much"}, "lora_alpha of its config must be a number, got 'much'"),
        ({"r": 3, "lora_alpha": 1, "alpha_pattern": {"(a+)+$": 1}}, "only names are read"),
        ({"r": 3, "lora_alpha": 1, "alpha_pattern": [1]}, "must be a mapping"),
        ([1], "must be a JSON object, got list"),
        ("{", "is not JSON"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, config, what):
    path = written(tmp_path / "adapter_model.safetensors", "peft")
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=what) as error:
        read_lora(path)
    assert "\n" not in str(error.value)


def broken(path: Path, change) -> Path:
    tensors = {"transformer.proj_out.lora_A.weight": torch.ones(2, DIM)}
    tensors["transformer.proj_out.lora_B.weight"] = torch.ones(16, 2)
    change(tensors)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.pop("transformer.proj_out.lora_B.weight"), "only one of lora_A"),
        (lambda t: t.update({"transformer.proj_out.lora_B.weight": torch.ones(16, 3)}), r"A \(2, 24\) and B \(16, 3\)"),
        (lambda t: t.update({"transformer.proj_out.lora_A.weight": torch.ones(2)}), r"A \(2,\)"),
        (lambda t: t.update({"transformer.proj_out.lora_A.weight": torch.ones(2, 24).int()}), "torch.int32"),
        (lambda t: t.update({"transformer.proj_out.lora_A.weight": torch.full((2, 24), torch.nan)}), "not finite"),
        (lambda t: t.update({"transformer.proj_out.alpha": torch.ones(2)}), r"alpha has the shape \(2,\)"),
        (lambda t: t.update({"transformer.proj_out.alpha": torch.tensor(torch.inf)}), "alpha is not finite"),
        (lambda t: t.update({"proj_out.lora_A.weight": torch.ones(2, 24)}), "is there twice"),
        (lambda t: t.update({"transformer.proj_out.lora_magnitude_vector": torch.ones(2)}), "a DoRA adapter"),
        (lambda t: t.update({"transformer.proj_out.lokr_w1": torch.ones(2)}), "a LoKr adapter"),
        (lambda t: (t.clear(), t.update({"proj_out.weight": torch.ones(2)})), "not a LoRA.*it has proj_out.weight"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(tmp_path, change, what):
    path = broken(tmp_path / "a.safetensors", change)
    with pytest.raises(CheckpointError, match=what) as error:
        read_lora(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_whole_model_is_refused_before_its_data_is_read(tmp_path, monkeypatch):
    save_file({"blocks.0.attn1.to_q.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(weights, "read_tensors", lambda path: pytest.fail("read"))
    with pytest.raises(CheckpointError, match="not a LoRA"):
        read_lora(tmp_path / "a.safetensors")


def test_rank_0_is_refused(tmp_path):
    path = written(tmp_path / "a.safetensors", rank=0)
    with pytest.raises(CheckpointError, match="rank 0"):
        read_lora(path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_never_opened_whatever_its_name(tmp_path, name, legacy):
    path = tmp_path / name
    if legacy:
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"x": Bomb()}, path)
    with pytest.raises(CheckpointError, match=r"a pickle, .* take the LoRA as \.safetensors") as error:
        read_lora(path)
    assert "\n" not in str(error.value)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_lora(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="a folder without"):
        read_lora(tmp_path)
    path = written(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    for data, what in ((whole[:-1], "not a whole"), (b"", "not a safetensors"), (b"x" * 100, "not a safetensors")):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=what):
            read_lora(path)
    path.write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(CheckpointError, match="not a whole"):
        read_lora(path)
