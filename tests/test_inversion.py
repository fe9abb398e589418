import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.mixtures import Mixture
from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule, LinearSchedule
from vidiff.errors import ConfigError
from vidiff.inverting import decibels, invert_clip
from vidiff.model_folder import SamplingConfig
from vidiff.pipeline import find_model, load
from vidiff.sampling.inversion import invert
from vidiff.sampling.loop import sample
from vidiff.sampling.solvers import DDIM, Euler
from vidiff.sampling.times import uniform_times

SPRITES = Path(__file__).parents[2] / "shared" / "data" / "sprites" / "val-00000.tar"


def data_of(mixture, count=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(torch.tensor(mixture.weights), count, replacement=True, generator=generator)
    noise = mixture.std * torch.randn(count, generator=generator, dtype=torch.float64)
    return (torch.tensor(mixture.means, dtype=torch.float64)[chosen] + noise).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("solver", [DDIM(), Euler()], ids=repr)
@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule(shift=2.0), LinearSchedule()], ids=repr)
def test_the_noise_that_is_found_samples_to_the_data(schedule, solver):
    mixture, times = Mixture(schedule), uniform_times(50)
    data = data_of(mixture)
    noise = invert(mixture, schedule, data, times, num_iterations=20)
    assert torch.allclose(sample(mixture, schedule, solver, noise, times), data, atol=1e-9)


def test_noise_is_found_again_from_what_it_became():
    mixture, times = Mixture(CosineSchedule()), uniform_times(50)
    noise = torch.randn(64, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = sample(mixture, mixture.schedule, DDIM(), noise, times)
    found = invert(mixture, mixture.schedule, made, times, num_iterations=20)
    assert torch.allclose(found, noise, atol=1e-6)


def test_more_iterations_lead_back_nearer():
    mixture, times = Mixture(CosineSchedule(), means=(-1.0, 1.0), weights=(0.5, 0.5)), uniform_times(50)
    data = data_of(mixture)
    near = []
    for count in (1, 2, 4):
        noise = invert(mixture, mixture.schedule, data, times, num_iterations=count)
        near.append(decibels(data, sample(mixture, mixture.schedule, DDIM(), noise, times)))
    assert near == sorted(near) and near[0] > 30 and near[-1] > near[0] + 20


def test_the_noise_approaches_that_of_the_exact_flow_at_first_order():
    gaussian = Mixture(CosineSchedule(), means=(0.0,), weights=(1.0,), std=0.5)
    data = data_of(gaussian)
    exact = data / gaussian.std  # the flow keeps the quantile, and ends in unit variance
    errors = []
    for steps in (25, 50, 100):
        noise = invert(gaussian, gaussian.schedule, data, uniform_times(steps), num_iterations=20)
        errors.append((noise - exact).abs().max().item())
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([1, 1], abs=0.25)


def test_samples_are_inverted_one_by_one():
    mixture, times = Mixture(CosineSchedule()), uniform_times(20)
    data = data_of(mixture, 3)
    whole = invert(mixture, mixture.schedule, data, times)
    assert torch.equal(whole[1:2], invert(mixture, mixture.schedule, data[1:2], times))


def test_progress_is_told_and_no_iterations_are_refused():
    mixture, told = Mixture(CosineSchedule()), []
    invert(mixture, mixture.schedule, data_of(mixture), uniform_times(3), on_step=lambda *now: told.append(now[:2]))
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        invert(mixture, mixture.schedule, data_of(mixture), uniform_times(3), num_iterations=0)


@pytest.mark.skipif(not SPRITES.is_file(), reason="the sprite shards are not beside this checkout")
def test_a_real_clip_comes_back_within_30_decibels():
    pipeline = load(find_model("sprites"))
    clips = ClipDataset(DataConfig(SPRITES, frames=17, height=64, width=64))
    sampling = SamplingConfig(DDIM(), 50, Guidance(scale=1.0))
    size = pipeline.config.size
    # Its caption leaves the ground open: plain iteration does not converge, and leads back within 24 dB.
    noise, near = invert_clip(pipeline, clips.clip(200), clips.captions(200)[0], size, sampling, num_iterations=2)
    assert near > 40
    assert 0.8 < noise.std() < 1.2
