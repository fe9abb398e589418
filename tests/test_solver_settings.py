"""Settings of solvers beside their order: where it is lowered, what is averaged, and where steps have their middle."""

from itertools import pairwise

import pytest
import torch

from tests.mixtures import Mixture
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule
from vidiff.sampling.loop import Problem, SolverState, sample
from vidiff.sampling.multistep import DEIS, DPMpp3M
from vidiff.sampling.times import uniform_times
from vidiff.sampling.two_stage import DPMpp2S, Heun
from vidiff.sampling.unipc import UniPC


def noise(count=8):
    return torch.randn(count, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("lowered", "plain", "always"),
    [
        (UniPC(order=3, lower_order_final=True), UniPC(order=3), True),
        (DEIS(lower_order_final=True), DEIS(), False),
        (DPMpp3M(lower_order_final=True), DPMpp3M(), False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("steps", [6, 14, 15])
def test_orders_are_lowered_at_the_end_of_short_runs(lowered, plain, always, steps):
    schedule, times = CosineSchedule(), uniform_times(steps)
    ends = []
    for solver in (lowered, plain):
        latents = []
        state = SolverState(noise())
        for step, (t, s) in enumerate(pairwise(times)):
            state = solver(Problem(Mixture(schedule), schedule, num_steps=steps, step=step), state, t, s)
            latents.append(state.x)
        ends.append(latents)
    same = [torch.equal(*one) for one in zip(*ends, strict=True)]
    assert same == [True] * (steps - 2) + [not always and steps >= 15] * 2


def test_the_middle_of_a_step_may_be_a_time_of_the_grid():
    schedule, calls = CosineSchedule(), []
    times = schedule.time_at(torch.logspace(1, -1.5, 9, dtype=torch.float64))  # halfway in log-SNR is every other one
    mixture = Mixture(schedule)
    denoise = lambda x, t: calls.append(t) or mixture(x, t)  # noqa: E731
    found, whole = (
        sample(denoise, schedule, solver, noise(), grid)
        for solver, grid in ((DPMpp2S(middle="grid"), times), (DPMpp2S(), times[::2]))
    )
    assert torch.allclose(found, whole, atol=1e-9) and len(calls) == 8 + 8


def test_on_the_axis_of_a_flow_heun_averages_velocities():
    schedule = FlowSchedule()
    mixture, times = Mixture(schedule), uniform_times(4)
    denoise = lambda x, t: mixture(x, t[None])  # noqa: E731
    x = found = noise()
    for t, s in pairwise(times[:-1]):
        first = (x - denoise(x, t)) / t
        ahead = x + (s - t) * first
        x = x + (s - t) * (first + (ahead - denoise(ahead, s)) / s) / 2
        found = Heun(axis="flow")(Problem(mixture, schedule), SolverState(found), t, s).x
        assert torch.allclose(found, x, atol=1e-12)
