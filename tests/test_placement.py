"""Parts of a published model that come to the device and leave it: the same clips, whatever the plan."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.published import text_to_video
from vidiff.diffusion.guidance import Guidance
from vidiff.errors import ConfigError
from vidiff.memory import Strategy
from vidiff.pipeline import load
from vidiff.types import Size

SIZE = Size(5, 32, 48, 16.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    text_to_video(folder, experts=True)
    return folder


def latents(pipeline):
    sampling = replace(pipeline.config.sampling, num_steps=4, guidance=Guidance(scale=3.0))
    return pipeline.sample(["a red ball"], [0], SIZE, sampling)


@pytest.fixture(scope="module")
def expected(folder):
    return latents(load(folder))


@pytest.mark.parametrize(
    ("kind", "parked"), itertools.product(["resident", "swapped", "streamed"], [False, True]), ids=str
)
def test_every_way_makes_the_same_latents_again_and_again(folder, expected, kind, parked):
    model = load(folder, strategy=Strategy("host", kind, False, "chunks", parked))
    for _ in range(2):
        assert torch.equal(latents(model), expected)
        with model.coding():
            model.autoencoder.decode(expected)
            assert bool(model.placement._offloads) == (kind == "streamed" and not parked)


def test_blocks_are_ordinary_again_after_they_were_streamed(folder, expected):
    model = load(folder, strategy=Strategy("host", "streamed", False, "chunks", True))
    latents(model)
    network = model.placement.networks[0]
    hooks = [len(block._forward_pre_hooks) for block in network.blocks]
    with model.coding():
        pass
    assert all(hooks) and not any(len(block._forward_pre_hooks) for block in network.blocks)
    assert torch.equal(latents(model), expected)


def test_models_of_ours_have_no_plan():
    from vidiff.pipeline import find_model

    with pytest.raises(ConfigError, match="plans of memory are for published models"):
        load(find_model("sprites"), strategy=Strategy("host", "resident", False, "chunks", False))
