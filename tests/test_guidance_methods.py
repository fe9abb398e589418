"""Each method of guidance on denoisers that are known exactly: neutral, and doing what its paper says."""

from itertools import pairwise

import pytest
import torch

from vidiff import config
from vidiff.diffusion.guidance import Guidance, SkipLayers, guided
from vidiff.diffusion.projection import Projection, RunningAverage, share_along
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule
from vidiff.diffusion.threshold import Threshold
from vidiff.errors import ConfigError
from vidiff.sampling.loop import sample
from vidiff.sampling.solvers import DDIM, Euler, Heun
from vidiff.sampling.times import uniform_times
from vidiff.tensors import expand_as
from vidiff.types import Conditioning, TextEmbedding

SHAPE = (2, 3, 4, 5)


def says(seed, batch=2):
    """Return a conditioning that makes `Told` draw its estimate from ``seed``; 0 says nothing."""
    return Conditioning(
        TextEmbedding(torch.full((batch, 1, 1), float(seed)), torch.ones(batch, 1, dtype=torch.bool)),
    )


class Told:
    """Estimates x_0 as a fixed direction for each text and sample, plus a share of x_t, and counts its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, x_t, t, cond):
        assert len(x_t) == len(t) == len(cond.text.tokens)
        self.batches.append(len(x_t))
        found = torch.stack([self.direction(int(word)) for word in cond.text.tokens.flatten()])
        if cond.skip_layers:
            mask = torch.ones(len(x_t), dtype=torch.bool) if cond.skips is None else cond.skips
            found = torch.where(expand_as(mask, found), found * 0.5, found)
        return found + expand_as(1 + t, found) * x_t / 4

    @staticmethod
    def direction(seed):
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
T = torch.tensor([0.5, 0.5], dtype=torch.float64)
TIMES = uniform_times(10)
COND, NULL, NEGATIVE = says(1), says(2), says(3)


def estimates(x=X, t=T):
    return tuple(Told()(x, t, one) for one in (COND, NULL, NEGATIVE))


def run(guidance, x=X, t=T, denoiser=None, schedule=None, **kwargs):
    schedule = schedule or CosineSchedule()
    return guided(denoiser or Told(), COND, NULL, guidance, schedule=schedule, times=TIMES, **kwargs)(x, t)


def plain(scale=4.0):
    cond, null, _ = estimates()
    return null + scale * (cond - null)


def flat(*tensors):
    return tuple(tensor.flatten(1) for tensor in tensors)


NEUTRAL = [
    Guidance(scale=4.0, projection=Projection(eta=1.0, norm=1e9, momentum=0.0)),
    Guidance(scale=4.0, projection=Projection(eta=1.0 - 1e-15)),
    Guidance(scale=4.0, projection=Projection(momentum=1e-15)),
    Guidance(scale=4.0, perpendicular=0.0),
    Guidance(scale=4.0, skip=SkipLayers(scale=0.0, layers=(1,))),
    Guidance(scale=4.0, threshold=Threshold(percentile=1.0)),
    Guidance(scale=4.0, zero_steps=0, fit_null=False),
    Guidance(scale="4..4@0:1"),
    Guidance(scale="4/4"),
]


@pytest.mark.parametrize("guidance", NEUTRAL, ids=repr)
def test_at_its_neutral_setting_every_method_is_plain_guidance(guidance):
    echo = Told()
    negative = NEGATIVE if guidance.perpendicular is not None else None
    assert torch.allclose(run(guidance, denoiser=echo, negative=negative), plain(), rtol=1e-12, atol=1e-12)
    assert echo.batches == [4]  # and costs no more


def test_an_older_config_is_plain_guidance():
    older = {"scale": 2.5, "rescale": 0.0, "t_min": 0.5, "t_max": 1.0}
    assert config.from_dict(Guidance, older) == Guidance(scale=2.5, t_min=0.5)
    assert torch.equal(run(Guidance(scale=2.5, t_min=0.5)), plain(2.5))


def test_a_scale_over_time_skips_the_null_estimate_where_it_is_one():
    echo = Told()
    denoise = guided(echo, COND, NULL, Guidance(scale="6@0.3:0.7,1"), times=TIMES)
    for t in TIMES[:-1]:
        denoise(X, t.expand(2))
    assert echo.batches == [2, 2, 2, 4, 4, 4, 4, 4, 2, 2]


def test_oscillating_guidance_alternates_over_the_steps():
    echo = Told()
    denoise = guided(echo, COND, NULL, Guidance(scale="5@0.8:1,5/1@0:0.7"), times=TIMES)
    cond, null, _ = estimates(t=TIMES[3].expand(2))
    assert torch.allclose(denoise(X, TIMES[3].expand(2)), null + 5 * (cond - null))
    for t in TIMES[4:8]:
        denoise(X, t.expand(2))
    assert echo.batches == [4, 2, 4, 2, 4]


# Adaptive projected guidance


def test_without_the_parallel_part_guidance_is_perpendicular_to_the_conditional_estimate():
    (cond, null, _), found = estimates(), run(Guidance(scale=4.0, projection=Projection(eta=0.0)))
    assert (share_along(found - cond, cond).abs() < 1e-12).all()
    # What is left is that part of plain guidance which is perpendicular.
    along = expand_as(share_along(cond - null, cond), cond) * cond
    assert torch.allclose(found, cond + 3 * (cond - null - along))


def test_a_norm_bounds_how_far_guidance_goes():
    cond, _, _ = estimates()
    found = run(Guidance(scale=4.0, projection=Projection(norm=2.0)))
    assert (found - cond).flatten(1).norm(dim=1).tolist() == pytest.approx([3 * 2.0] * 2)


def test_momentum_sums_the_differences_of_earlier_times():
    denoise = guided(Told(), COND, NULL, Guidance(scale=2.0, projection=Projection(momentum=-0.5)))
    for step, t in enumerate(TIMES[:5]):
        cond, null, _ = estimates(t=t.expand(2))
        weight = sum((-0.5) ** k for k in range(step + 1))  # the difference is the same at all times
        assert torch.allclose(denoise(X, t.expand(2)), cond + weight * (cond - null))


def test_adaptive_projection_agrees_with_the_reference_over_a_run():
    reference = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    memory = reference.MomentumBuffer(-0.5)
    projection = Projection(eta=0.25, norm=6.0, momentum=-0.5)
    denoise = guided(Told(), COND, NULL, Guidance(scale=7.0, projection=projection))
    for index, t in enumerate(TIMES[:6]):
        x = X * (1 + index)
        cond, null, _ = estimates(x, t.expand(2))
        # Its original formulation counts the scale from the conditional estimate.
        wanted = reference.normalized_guidance(cond, null, 7.0 - 1, memory, 0.25, 6.0, use_original_formulation=True)
        assert torch.allclose(denoise(x, t.expand(2)), wanted, rtol=1e-10, atol=1e-10)


def test_momentum_does_not_count_how_often_a_solver_looks():
    """A second stage, a corrector or a rejected step sees the same average as a first look."""

    def averages(visits):
        memory = RunningAverage(0.5)
        return {t: memory.update(torch.full((1, 1), 1 - t), torch.tensor([t])).item() for t in visits}

    once = averages([0.9, 0.6, 0.3])
    assert averages([0.9, 0.9, 0.6, 0.6, 0.3]) == once
    assert averages([0.9, 0.6, 0.2, 0.3])[0.3] == once[0.3]  # a step that was too long is taken back
    assert averages([0.2, 0.1, 0.9, 0.6, 0.3])[0.3] == once[0.3]  # a new run begins anew
    with pytest.raises(ValueError, match="share their times"):
        RunningAverage(0.5).update(torch.zeros(2, 1), torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("solver", [Euler(), Heun()])
def test_two_runs_of_one_function_with_momentum_are_the_same(solver):
    denoise = guided(Told(), COND, NULL, Guidance(scale=3.0, projection=Projection(momentum=-0.5)))
    first, second = (sample(denoise, CosineSchedule(), solver, X, TIMES) for _ in range(2))
    assert torch.equal(first, second)


# CFG-Zero*


def velocity(x_0, x_t, t, schedule):
    alpha, sigma = (expand_as(v, x_t) for v in schedule.alpha_sigma(t))
    return (x_t - alpha * x_0) / sigma - x_0


@pytest.mark.parametrize("schedule", [FlowSchedule(), FlowSchedule(shift=3.0), CosineSchedule()], ids=repr)
def test_the_null_velocity_is_fitted_as_in_the_reference(schedule):
    reference = pytest.importorskip("diffusers.guiders.classifier_free_zero_star_guidance")
    cond, null = (velocity(one, X, T, schedule) for one in estimates()[:2])
    share = reference.cfg_zero_star_scale(*flat(cond, null)).view(-1, 1, 1, 1, 1)
    found = velocity(run(Guidance(scale=4.0, fit_null=True), schedule=schedule), X, T, schedule)
    assert torch.allclose(found, share * null + 4 * (cond - share * null), rtol=1e-5, atol=1e-6)


def test_a_null_velocity_that_is_only_too_short_no_longer_guides():
    """Where the two differ in length alone, the fit takes the whole difference away."""
    schedule = FlowSchedule()
    cond = estimates()[0]

    def denoiser(x_t, t, said):
        v = velocity(cond.repeat(len(x_t) // 2, 1, 1, 1, 1), x_t, t, schedule)
        v = v * said.text.tokens.view(-1, 1, 1, 1, 1)  # cond says 1, null 2
        return x_t - expand_as(t, x_t) * v

    assert torch.allclose(run(Guidance(scale=9.0, fit_null=True), denoiser=denoiser, schedule=schedule), cond)
    assert not torch.allclose(run(Guidance(scale=9.0), denoiser=denoiser, schedule=schedule), cond)


@pytest.mark.parametrize("schedule", [FlowSchedule(shift=2.0), CosineSchedule()], ids=repr)
@pytest.mark.parametrize("solver", [Euler(), DDIM()], ids=repr)
def test_the_first_steps_can_rest_and_then_cost_nothing(solver, schedule):
    echo, seen = Told(), []

    def heard(x_t, t):
        seen.append(x_t)
        return denoise(x_t, t)

    denoise = guided(echo, COND, NULL, Guidance(scale=4.0, zero_steps=3), schedule=schedule, times=TIMES)
    sample(heard, schedule, solver, X, TIMES)
    assert echo.batches == [4] * 7
    for (t, x), (s, moved) in pairwise(zip(TIMES[:4], seen, strict=False)):
        level, later = (sum(schedule.alpha_sigma(one)) for one in (t, s))
        assert torch.allclose(moved / later, x / level)  # on the straight path nothing has moved


# Perpendicular negative


def test_a_negative_only_takes_what_is_perpendicular_to_the_prompt():
    cond, null, negative = estimates()
    found = run(Guidance(scale=4.0, perpendicular=1.5), negative=NEGATIVE)
    removed = (found - plain()) / (-4 * 1.5)
    wanted = cond - null
    assert (share_along(removed, wanted).abs() < 1e-12).all()
    assert torch.allclose(
        removed + expand_as(share_along(negative - null, wanted), wanted) * wanted, negative - null, atol=1e-10
    )


def test_a_negative_that_says_what_the_prompt_says_takes_nothing():
    assert torch.allclose(run(Guidance(scale=4.0, perpendicular=2.0), negative=COND), plain())


def test_a_negative_replaces_the_null_text_unless_it_is_perpendicular():
    cond, _, negative = estimates()
    echo = Told()
    assert torch.allclose(run(Guidance(scale=4.0), denoiser=echo, negative=NEGATIVE), negative + 4 * (cond - negative))
    run(Guidance(scale=4.0, perpendicular=1.0), denoiser=echo, negative=NEGATIVE)
    run(Guidance(scale=4.0, perpendicular=1.0), denoiser=echo)
    assert echo.batches == [4, 6, 4]


# Skipped layers


def test_skipped_layers_guide_away_from_the_network_without_them():
    cond, _, _ = estimates()
    skip = SkipLayers(scale=2.0, layers=(1,), t_min=0.4, t_max=0.6)
    skipped = Told()(X, T, COND.skipping((1,)))
    echo = Told()
    found = run(Guidance(scale=4.0, skip=skip), denoiser=echo)
    assert torch.allclose(found, plain() + 2 * (cond - skipped))
    assert torch.allclose(run(Guidance(scale=1.0, skip=skip), denoiser=echo), cond + 2 * (cond - skipped))
    both = run(Guidance(scale=1.0, skip=skip), t=torch.tensor([0.5, 0.7]).double(), denoiser=echo)
    assert torch.allclose(both[0], (cond + 2 * (cond - skipped))[0])
    assert torch.equal(both[1], Told()(X, torch.tensor([0.7, 0.7]).double(), COND)[1])
    run(Guidance(scale=1.0, skip=skip), t=T + 0.2, denoiser=echo)
    assert echo.batches == [6, 4, 4, 2]  # one call, and outside of the interval nothing more


# Together


def test_all_together_is_one_call_in_the_order_that_is_documented():
    guidance = Guidance(
        scale="4@0.2:0.8",
        rescale=0.5,
        projection=Projection(eta=0.3, norm=5.0),
        fit_null=True,
        perpendicular=0.7,
        skip=SkipLayers(scale=0.5, layers=(0, 2)),
        threshold=Threshold(percentile=0.9, bound=2.0),
    )
    schedule, echo = CosineSchedule(), Told()
    found = run(guidance, denoiser=echo, schedule=schedule, negative=NEGATIVE)
    assert echo.batches == [8]
    cond, null, negative = estimates()
    skipped = Told()(X, T, COND.skipping((0, 2)))

    def along(a, b):
        return expand_as(share_along(a, b), b) * b

    kept = cond - 0.7 * (negative - null - along(negative - null, cond - null))
    level = expand_as(sum(schedule.alpha_sigma(T)), X)
    null = (X - along(X - level * kept, X - level * null)) / level
    difference = kept - null
    difference = difference * (5 / difference.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1, 1)
    x_0 = kept + 3 * (difference - 0.7 * along(difference, kept)) + 0.5 * (cond - skipped)
    deviation = [one.flatten(1).std(1, correction=0).view(-1, 1, 1, 1, 1) for one in (cond, x_0)]
    x_0 = x_0.lerp(x_0 * deviation[0] / deviation[1], 0.5)
    assert torch.allclose(found, Threshold(percentile=0.9, bound=2.0)(x_0))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"scale": "6@0"}, "no piece"),
        ({"zero_steps": -1}, "number of steps"),
        ({"skip": {"scale": 1.0}}, "names no blocks"),
        ({"skip": {"scale": 1.0, "layers": [1, 1]}}, "different numbers"),
        ({"skip": {"t_min": 0.6, "t_max": 0.2}}, "lies above"),
        ({"projection": {"norm": 0.0}}, "norm must be positive"),
        ({"projection": {"momentum": 1.0}}, "between -1 and 1"),
        ({"projection": {"etta": 1.0}}, "Did you mean eta?"),
    ],
)
def test_impossible_settings_are_one_line(bad, words):
    with pytest.raises(ConfigError) as error:
        config.from_dict(Guidance, bad)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("guidance", "given"),
    [
        (Guidance(fit_null=True), {}),
        (Guidance(zero_steps=1), {"schedule": FlowSchedule()}),
        (Guidance(scale="3/1"), {}),
    ],
)
def test_what_needs_the_schedule_or_the_steps_says_so(guidance, given):
    with pytest.raises(ConfigError, match="need"):
        guided(Told(), COND, NULL, guidance, **given)(X, T)
