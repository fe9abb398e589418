"""Where steps fall, beside the reference's discrete steps and closed forms."""

import pytest
import torch

from vidiff.diffusion.schedule import CosineSchedule, EDMSchedule, FlowSchedule, LinearSchedule
from vidiff.errors import ConfigError
from vidiff.model_folder import SamplingConfig
from vidiff.sampling.times import (
    SPACINGS,
    BetaSpacing,
    ExponentialSpacing,
    KarrasSpacing,
    LeadingSpacing,
    LinspaceSpacing,
    ListedSpacing,
    TrailingSpacing,
    listed_spacing,
    noisier,
    spacing_by_name,
)


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule(), FlowSchedule(), EDMSchedule()], ids=repr)
@pytest.mark.parametrize("name", [name for name in SPACINGS if name != "list"])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
def test_times_fall_to_0(name, schedule, num_steps):
    times = SPACINGS[name]().times(schedule, num_steps)
    assert times.shape == (num_steps + 1,) and times.dtype == torch.float64
    assert times[0] <= 1 and times[-1] == 0 and (times.diff() < 0).all()


@pytest.mark.parametrize(
    ("spacing", "name"),
    [(LeadingSpacing(offset=1), "leading"), (TrailingSpacing(), "trailing"), (LinspaceSpacing(), "linspace")],
)
@pytest.mark.parametrize("num_steps", [4, 7, 20, 50])
def test_discrete_spacings_are_those_of_the_reference(spacing, name, num_steps):
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDIMScheduler(timestep_spacing=name, steps_offset=1)
    reference.set_timesteps(num_steps)
    found = spacing.times(LinearSchedule(), num_steps)
    assert torch.equal((found[:-1] * 1000).round().long() - 1, torch.as_tensor(reference.timesteps))


@pytest.mark.parametrize(
    ("spacing", "method"), [(KarrasSpacing(), "_convert_to_karras"), (ExponentialSpacing(), "_convert_to_exponential")]
)
def test_spacings_in_noise_are_those_of_the_reference(spacing, method):
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.EulerDiscreteScheduler()
    levels = torch.as_tensor(getattr(reference, method)(in_sigmas=torch.tensor([80.0, 0.002]), num_inference_steps=9))
    alpha, sigma = LinearSchedule().alpha_sigma(spacing.times(LinearSchedule(), 9)[:-1])
    assert torch.allclose(sigma / alpha, levels.double(), rtol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (2.0, 0.5)])
def test_quantiles_are_those_of_the_beta_distribution(alpha, beta):
    stats = pytest.importorskip("scipy.stats")
    found = BetaSpacing(alpha=alpha, beta=beta).times(FlowSchedule(), 11)
    wanted = torch.as_tensor(stats.beta.ppf(torch.linspace(1, 0, 12, dtype=torch.float64), alpha, beta))
    assert torch.allclose(found, wanted, atol=1e-12)


def test_listed_times_are_taken_as_they_are():
    spacing = listed_spacing("1,0.7,0.25,0")
    assert spacing.times(FlowSchedule(), 3).tolist() == [1.0, 0.7, 0.25, 0.0]
    assert SamplingConfig(spacing=spacing, num_steps=3, last_t=0.5).times(FlowSchedule()).tolist()[2] == 0.25
    with pytest.raises(ConfigError, match=r"the times 1,0.7,0.25,0 are 3 steps, not 4; set the number of steps to 3"):
        SamplingConfig(spacing=spacing, num_steps=4)


@pytest.mark.parametrize("text", ["1,0.5", "0.5,0.7,0", "1.2,0", "0", "1;0"])
def test_what_is_no_list_of_times_is_refused(text):
    with pytest.raises(ConfigError, match=r"such as 1,0.8,0.4,0"):
        listed_spacing(text)


def test_an_unknown_spacing_gets_a_hint():
    assert spacing_by_name("karras") == KarrasSpacing()
    with pytest.raises(ConfigError, match=r"unknown spacing 'karas'. Did you mean karras\?"):
        spacing_by_name("karas")
    with pytest.raises(ConfigError, match="unknown spacing 'list'"):
        spacing_by_name("list")  # has its own option


def test_any_spacing_may_end_early():
    for spacing in (TrailingSpacing(), BetaSpacing()):
        times = SamplingConfig(spacing=spacing, num_steps=5, last_t=0.4).times(CosineSchedule())
        assert times[0] == 1 and times[-2].item() == pytest.approx(0.4) and times[-1] == 0
        assert (times.diff() < 0).all()
    assert SamplingConfig(num_steps=1, last_t=0.4).times(CosineSchedule()).tolist() == [1.0, 0.0]


def test_steps_of_larger_clips_are_noisier():
    for schedule in (CosineSchedule(), FlowSchedule()):
        plain = SamplingConfig(num_steps=8)
        times = SamplingConfig(num_steps=8, positions=100).times(schedule, 400)
        (alpha, sigma), (a, s) = schedule.alpha_sigma(times[1:-1]), schedule.alpha_sigma(plain.times(schedule)[1:-1])
        assert torch.allclose(sigma / alpha, 2 * s / a)
        assert times[0] == 1 and times[-1] == 0
        assert torch.equal(SamplingConfig(num_steps=8, positions=100).times(schedule, 100), times) is False
    # Of a flow it is the shift of its times (Esser et al., 2024, equation 23).
    t = torch.tensor([0.5], dtype=torch.float64)
    assert noisier(FlowSchedule(), t, 3.0).item() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KarrasSpacing(ratio_min=3.0, ratio_max=2.0), "0 < ratio_min < ratio_max"),
        (lambda: BetaSpacing(alpha=0), "alpha and beta must be positive"),
        (lambda: ListedSpacing(listed=(1.0,)), "times must fall"),
        (lambda: SamplingConfig(positions=-1), "positions is a number"),
        (lambda: SamplingConfig(temperature=-1.0), "temperature is at least 0"),
        (lambda: TrailingSpacing().times(FlowSchedule(), 0), "at least 1, got 0"),
    ],
)
def test_impossible_spacings_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
