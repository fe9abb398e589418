"""LoRA files on top of loaded models of one transformer and of two experts."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from tests.published import text_to_video
from vidiff.adapting import adapted, lora_file
from vidiff.errors import CheckpointError, ConfigError
from vidiff.pipeline import load

MODULE, OURS = "blocks.0.attn1.to_q", "blocks.0.attention.query.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, experts in (("one", False), ("two", True)):
        made[name] = tmp_path_factory.mktemp(name)
        text_to_video(made[name], experts=experts)
    return made


def written(path, *prefixes):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for prefix in prefixes:
        for part, shape in (("A", (2, 24)), ("B", (24, 2))):
            tensors[f"{prefix}{MODULE}.lora_{part}.weight"] = torch.randn(shape, generator=generator)
    save_file(tensors, path)
    return path


def applied(folder, *texts):
    """Return which experts' weights changed, what was said, and the new hash."""
    pipeline, said = load(folder), []
    networks = getattr(pipeline.denoiser.backbone, "experts", [pipeline.denoiser.backbone])
    before = [network.get_parameter(OURS).clone() for network in networks]
    new = adapted(pipeline, [lora_file(str(text)) for text in texts], said.append)
    pairs = zip(networks, before, strict=True)
    return [not torch.equal(network.get_parameter(OURS), old) for network, old in pairs], said, new.hash


@pytest.mark.parametrize(
    ("prefixes", "end", "changes", "where"),
    [
        (("",), "", [True, True], ["high", "low"]),
        (("",), "@high", [True, False], ["high"]),
        (("",), ":0.5@low", [False, True], ["low"]),
        (("transformer.", "transformer_2."), "", [True, True], ["high", "low"]),
        (("transformer.", "transformer_2."), "@low", [False, True], ["low"]),
        (("transformer_2.",), "", [False, True], ["low"]),
    ],
)
def test_an_expert_gets_what_is_meant_for_it(folders, tmp_path, prefixes, end, changes, where):
    file = written(tmp_path / "style.safetensors", *prefixes)
    changed, said, _ = applied(folders["two"], f"{file}{end}")
    assert changed == changes
    of = len(prefixes)
    assert [line.split(",")[0] for line in said] == [
        f"style.safetensors: 1 of {of} modules of the {one}-noise expert" for one in where
    ]


def test_a_pair_of_files_goes_to_both_experts(folders, tmp_path):
    high, low = (written(tmp_path / f"style_{one}_noise.safetensors", "") for one in ("high", "low"))
    save_file({f"{MODULE}.diff": torch.ones(24, 24)}, low)
    changed, said, digest = applied(folders["two"], f"{high}@high", f"{low}@low")
    assert changed == [True, True] and len(said) == 2
    others = [applied(folders["two"], *texts)[2] for texts in ((f"{high}@low", f"{low}@high"), (high, low))]
    assert len({digest, *others}) == 3


@pytest.mark.parametrize("name", ["style_high_noise", "High-Noise_v2", "style.HighNoise"])
def test_a_file_that_seems_to_be_for_one_expert_alone_is_pointed_out(folders, tmp_path, name):
    file = written(tmp_path / f"{name}.safetensors", "")
    said = applied(folders["two"], file)[1]
    assert len(said) == 3 and "add @high to it" in said[-1]
    assert len(applied(folders["two"], f"{file}@low")[1]) == 1  # the user knows
    assert len(applied(folders["one"], file)[1]) == 1


def test_an_expert_that_is_not_there_is_one_line(folders, tmp_path):
    file = written(tmp_path / "style.safetensors", "transformer_2.")
    with pytest.raises(ConfigError, match="no experts, so leave out @low"):
        applied(folders["one"], f"{file}@low")
    with pytest.raises(CheckpointError, match="second expert"):
        applied(folders["two"], f"{file}@high")


def test_without_an_expert_an_adapted_model_keeps_the_hash_it_had(folders, tmp_path):
    one = lora_file(f"{written(tmp_path / 'style.safetensors', '')}:0.5")
    expected = hashlib.sha256(f"{load(folders['one']).hash}{one.sha256} 0.5\n".encode()).hexdigest()
    assert applied(folders["one"], f"{one.path}:0.5")[2] == expected
