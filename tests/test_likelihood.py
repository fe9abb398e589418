"""Bits against closed forms: of Gaussians, mixtures and levels whose denoisers are known exactly."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from tests.mixtures import WideMixture
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule, LinearSchedule
from vidiff.errors import ConfigError
from vidiff.metrics.likelihood import (
    LEAST_NOISE,
    DensityDecoder,
    LevelDecoder,
    flow_bits,
    level_times,
    rademacher,
    time_of_noise,
    variational_bound,
)


@dataclass(frozen=True)
class ExplodingSchedule:
    """Variance exploding: x_t = x_0 + sigma eps, with some noise left at t = 0."""

    low: float = 0.002
    high: float = 80.0

    def alpha_sigma(self, t):
        return torch.ones_like(t), self.low ** (1 - t) * self.high**t

    def time_at(self, ratio):
        return (ratio / self.low).log() / math.log(self.high / self.low)


SCHEDULES = [CosineSchedule(), LinearSchedule(), FlowSchedule(shift=3.0), ExplodingSchedule()]
MIXTURE = {}
GAUSSIAN = {"means": ((0.3, -0.2),), "stds": ((0.5, 0.1),), "weights": (1.0,)}
UNIT = {"means": ((0.0, 0.0),), "stds": ((1.0, 1.0),), "weights": (1.0,)}
ALL_SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)  # their mean square is the identity


def drawn(density, count):
    """Return samples (N, D, 1, 1, 1) and their exact bits, (N,)."""
    torch.manual_seed(0)
    rows = density.distribution().sample((count,))
    return rows.reshape(*rows.shape, 1, 1, 1), -density.distribution().log_prob(rows) / math.log(2)


def even_noise(shape, seed=0):
    """Return what draws normal noise whose moments over the batch are nearly exact, so that few samples do."""
    generator = torch.Generator().manual_seed(seed)
    ranks = (torch.arange(shape[0], dtype=torch.float64) + 0.5) / shape[0]
    quantiles = torch.special.ndtri(ranks)
    quantiles = quantiles / quantiles.std(correction=0)
    width = math.prod(shape[1:])
    return lambda: torch.stack(
        [quantiles[torch.randperm(shape[0], generator=generator)] for _ in range(width)], dim=1
    ).reshape(shape)


def gap(density, num_steps, variance="fixed_small", count=256):
    """Return how many bits a dimension the bound is above the truth, on average."""
    x_0, exact = drawn(density, count)
    times = level_times(density.schedule, num_steps, time_of_noise(density.schedule, 0.01))
    found = variational_bound(density, density.schedule, x_0, times, even_noise(x_0.shape), variance=variance)
    return float((found.total - exact).mean()) / x_0.shape[1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_both_methods_find_the_density_of_known_data(schedule, data):
    density = WideMixture(schedule, **data)
    x_0, exact = drawn(density, 128)
    probes = ALL_SIGNS.reshape(2, 1, 2, 1, 1, 1).expand(2, *x_0.shape)
    off = (flow_bits(density, schedule, x_0, probes, 48) - exact) / 2
    assert off.abs().max() < 0.03 and abs(off.mean()) < 0.002  # both from what signal a schedule leaves at its end
    assert abs(gap(density, 2000)) < 0.02


def test_the_gap_of_the_bound_falls_with_the_number_of_steps():
    gaps = [gap(WideMixture(CosineSchedule()), num_steps) for num_steps in (32, 128, 512)]
    assert gaps[0] > 0.3 and gaps[2] > 0.02  # a bound, and not yet tight
    assert all(0.15 < finer / coarser < 0.4 for coarser, finer in itertools.pairwise(gaps))  # as 1 / T


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_bound_of_unit_data_is_exact_at_any_number_of_steps_with_their_variance(num_steps):
    density = WideMixture(CosineSchedule(), **UNIT)
    assert abs(gap(density, num_steps, "fixed_large", 4096)) < 0.02
    assert gap(density, num_steps, "fixed_small", 4096) > 0.5


def test_parts_of_the_bound_are_what_they_are_called():
    density = WideMixture(LinearSchedule(), **UNIT)
    x_0, _ = drawn(density, 8)
    times = level_times(density.schedule, 10)
    found = variational_bound(density, density.schedule, x_0, times, even_noise(x_0.shape))
    alpha, sigma = density.schedule.alpha_sigma(times[-1])
    normal = torch.distributions.Normal
    left = torch.distributions.kl_divergence(normal(alpha * x_0, sigma), normal(0, sigma)).flatten(1).sum(1)
    assert torch.allclose(found.prior, left / math.log(2)) and (found.prior > 0).all()
    assert torch.allclose(found.total, found.prior + found.diffusion + found.decoder)


def test_random_probes_have_no_bias_and_scatter_less_when_there_are_more():
    density = WideMixture(CosineSchedule())
    x_0, exact = drawn(density, 256)
    off = []
    for count in (1, 16):
        probes = rademacher((count, *x_0.shape), torch.Generator().manual_seed(count))
        off.append((flow_bits(density, density.schedule, x_0, probes, 32) - exact) / 2)
        assert abs(float(off[-1].mean())) < 3 * float(off[-1].std()) / 16
    assert 0.15 < float(off[1].std() / off[0].std()) < 0.4
    assert set(probes.unique().tolist()) == {-1.0, 1.0}


def test_runge_kutta_converges_in_fourth_order():
    density = WideMixture(CosineSchedule(), **GAUSSIAN)
    x_0, _ = drawn(density, 32)
    probes = ALL_SIGNS.reshape(2, 1, 2, 1, 1, 1).expand(2, *x_0.shape)
    coarse, fine, exact = (flow_bits(density, density.schedule, x_0, probes, num_steps) for num_steps in (32, 64, 256))
    assert math.log2((coarse - exact).abs().mean() / (fine - exact).abs().mean()) == pytest.approx(4, abs=0.25)


def test_levels_have_the_probabilities_of_a_normal_distribution_and_make_up_all_of_it():
    decoder = LevelDecoder(-2.0, 2.0)
    levels = torch.linspace(-2, 2, 256, dtype=torch.float64)
    for mean, deviation in ((0.3, 0.02), (0.0, 3.0), (-2.5, 0.4), (5.0, 0.1)):
        nats = decoder.nats(levels[:, None], torch.full((256, 1), mean).double(), torch.tensor(deviation**2).double())
        assert torch.isfinite(nats).all() and float((-nats).exp().sum()) == pytest.approx(1)
        edges = torch.distributions.Normal(mean, deviation).cdf((levels[1:] + levels[:-1]) / 2)
        expected = torch.diff(edges, prepend=edges.new_zeros(1), append=edges.new_ones(1))
        assert torch.allclose((-nats).exp(), expected, atol=1e-6)


def test_data_of_levels_cost_the_bits_of_their_probabilities():
    schedule, decoder = CosineSchedule(), LevelDecoder(-2.0, 2.0)
    levels = torch.linspace(-2, 2, 256, dtype=torch.float64)
    pmf = torch.distributions.Categorical(logits=-((levels - 0.4).square() / 0.5) + torch.sin(9 * levels))

    def denoise(x_t, t):
        alpha, sigma = (v.reshape(-1, 1) for v in schedule.alpha_sigma(t))
        logits = pmf.logits - (x_t.flatten(1) - alpha * levels).square() / (2 * sigma**2)
        return (logits.softmax(1) @ levels).reshape(x_t.shape)

    torch.manual_seed(0)
    chosen = pmf.sample((128,))
    x_0, exact = levels[chosen].reshape(-1, 1, 1, 1, 1), -pmf.log_prob(chosen) / math.log(2)
    times, noise = level_times(schedule, 2000), even_noise(x_0.shape)
    found = variational_bound(denoise, schedule, x_0, times, noise, decoder=decoder)
    assert float((found.total - exact).mean()) == pytest.approx(0, abs=0.02)
    # A density knows nothing of levels: of single points it is as high as the noise at the end is low.
    density = variational_bound(denoise, schedule, x_0, times, noise, decoder=DensityDecoder())
    assert float(density.total.mean()) < float(exact.mean()) - 5


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_times_rise_evenly_in_the_level_from_the_least_noise_to_the_end(schedule):
    times = level_times(schedule, 20)
    alpha, sigma = schedule.alpha_sigma(times)
    steps = torch.asinh(alpha / sigma).diff()
    assert (times.diff() > 0).all() and times[-1] == 1 and torch.allclose(steps, steps.mean(), rtol=1e-3)
    assert float(sigma[0] / alpha[0]) == pytest.approx(LEAST_NOISE, rel=1e-6)


def test_a_schedule_that_begins_with_more_noise_begins_there():
    schedule = ExplodingSchedule(low=0.05)
    assert time_of_noise(schedule, 0.01) == level_times(schedule, 4)[0] == 0


def test_a_beginning_without_noise_and_no_steps_are_refused():
    with pytest.raises(ConfigError, match="where x_t has some noise, got 0"):
        level_times(CosineSchedule(), 4, 0.0)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        level_times(CosineSchedule(), 0)
