"""What a student of fewer steps learns from its teacher: pairs of x_t and the x_0 that it should say there.

The teacher is a guided denoiser, so its guidance is baked in and the student needs one evaluation a step (Meng et al.,
2023). All methods return `Lesson`s; the stage that trains on them does not know which one it was.
"""

import itertools
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from vidiff.diffusion.guidance import DenoiseFn
from vidiff.diffusion.schedule import NoiseSchedule, noised
from vidiff.errors import ConfigError
from vidiff.model_folder import SamplingConfig
from vidiff.sampling.levels import level
from vidiff.sampling.loop import Problem, SolverState
from vidiff.sampling.multistep import DPMpp2M
from vidiff.sampling.solvers import Solver
from vidiff.tensors import expand_as


class Lesson(NamedTuple):
    """Questions and their answers: n of them for each of B samples, the samples of one time together."""

    x_t: Tensor  # (n B, C, f, h, w)
    t: Tensor  # (n B,), float64
    x_0: Tensor  # what the student should estimate, (n B, C, f, h, w)


@dataclass(frozen=True)
class Classroom:
    """What lessons are made of."""

    teacher: DenoiseFn  # guided
    student: DenoiseFn  # without a gradient
    schedule: NoiseSchedule
    sampling: SamplingConfig  # how the student will be sampled
    x_0: Tensor  # clean latents, (B, C, f, h, w); of their shape where the method takes no clips
    generator: torch.Generator

    @property
    def times(self) -> Tensor:
        """The times that the student will visit, (num_steps + 1,), float64."""
        return self.sampling.times(self.schedule, math.prod(self.x_0.shape[2:])).to(self.x_0.device)

    def noise(self) -> Tensor:
        """Return standard normal noise of the latents' shape."""
        return torch.randn(self.x_0.shape, generator=self.generator, device=self.generator.device)

    def drawn(self, count: int) -> Tensor:
        """Return a random whole number below ``count`` for each sample, (B,)."""
        device = self.generator.device
        return torch.randint(count, (len(self.x_0),), generator=self.generator, device=device)


@dataclass(frozen=True)
class TrajectoryDistillation:
    """The student's steps lead along the teacher's whole run from the same noise, all taught at once.

    Knowledge distillation of a sampler (Luhman & Luhman, 2021), at every time that the student will visit and not at
    the first one only. It takes captions and no clips. Between those times the teacher's steps are even in t.
    """

    kind: Literal["trajectory"] = "trajectory"
    takes_clips: ClassVar[bool] = False
    teacher_steps: int = 13
    solver: Solver = field(default_factory=DPMpp2M)

    def check(self, sampling: SamplingConfig) -> None:
        """Raise a ConfigError unless the teacher visits the times of the student."""
        fixed = 1 if sampling.last_t else 0  # the last step, from last_t to 0, is one step for both
        steps, own = self.teacher_steps - fixed, sampling.num_steps - fixed
        if steps <= 0 or (own > 0 and steps % own):
            least = max(own, 1)
            near = max(1, round(steps / least)) * least + fixed
            raise ConfigError(
                f"teacher_steps must be {least} * n{' + 1' if fixed else ''}, for the teacher to visit the times of a "
                f"student of {sampling.num_steps} steps, got {self.teacher_steps}; try {near}"
            )

    def lesson(self, room: Classroom) -> Lesson:
        """Return one lesson for each of the student's steps."""
        fixed = 1 if room.sampling.last_t else 0
        times = room.times
        every = (self.teacher_steps - fixed) // max(room.sampling.num_steps - fixed, 1)

        def randn() -> Tensor:
            return room.sampling.temperature * room.noise()

        problem, steps = Problem(room.teacher, room.schedule, randn, self.teacher_steps), itertools.count()
        state = SolverState(randn() * level(room.schedule, times[0]).sigma.float())
        stops = [state.x]
        for number, (t, s) in enumerate(pairwise(times)):
            last = number == len(times) - 2
            parts = 1 if last and fixed else every
            for begin, end in pairwise(torch.linspace(t, s, parts + 1, dtype=torch.float64, device=t.device)):
                state = self.solver(replace(problem, step=next(steps)), state, begin, end)
            stops.append(state.x)
        found = [
            _leads_to(room.schedule, *around, *ts) for around, ts in zip(pairwise(stops), pairwise(times), strict=True)
        ]
        t = times[:-1].repeat_interleave(len(room.x_0))
        return Lesson(torch.cat(stops[:-1]), t, torch.cat(found))


@dataclass(frozen=True)
class ProgressiveDistillation:
    """One step of the student is two of the teacher (Salimans & Ho, 2022, Algorithm 2)."""

    kind: Literal["progressive"] = "progressive"
    takes_clips: ClassVar[bool] = True

    def check(self, sampling: SamplingConfig) -> None:
        """Any number of steps can be halved."""

    def teacher_steps(self, sampling: SamplingConfig) -> int:
        """Return how many steps the teacher takes where the student takes ``sampling``'s."""
        return 2 * sampling.num_steps - (1 if sampling.last_t else 0)  # the last step is one for both

    def lesson(self, room: Classroom) -> Lesson:
        """Return a lesson for a random step of the student each."""
        times = room.times
        step = room.drawn(room.sampling.num_steps)
        t, s = times[step], times[step + 1]
        x_t = noised(room.schedule, room.x_0, room.noise(), t)
        # The last step is the estimate at last_t, for the teacher as well.
        alone = (s == 0) & (room.sampling.last_t > 0)
        half = torch.where(alone, t, (t + s) / 2)
        x_half = _ddim(room.schedule, x_t, room.teacher(x_t, t), t, half)
        x_half = torch.where(expand_as(alone, x_t), x_t, x_half)
        x_s = _ddim(room.schedule, x_half, room.teacher(x_half, half), half, s)
        return Lesson(x_t, t, _leads_to(room.schedule, x_t, x_s, t, s))


@dataclass(frozen=True)
class ConsistencyDistillation:
    """The student says at t what it says one step of the teacher further on (Song et al., 2023; Luo et al., 2023).

    The student's own weights answer there, without an average of them (Song & Dhariwal, 2023, section 3.2); at the last
    time the teacher answers, which is the boundary condition.
    """

    kind: Literal["consistency"] = "consistency"
    takes_clips: ClassVar[bool] = True
    teacher_steps: int = 25
    skip: int = 1  # steps of the teacher's grid that are taken at once

    def check(self, sampling: SamplingConfig) -> None:
        """Raise a ConfigError unless there are steps to take."""
        if not 1 <= self.skip < self.teacher_steps:
            raise ConfigError(f"skip lies in 1 to teacher_steps - 1 = {self.teacher_steps - 1}, got {self.skip}")

    def lesson(self, room: Classroom) -> Lesson:
        """Return a lesson at a random time each."""
        end = room.sampling.last_t or 1 / self.teacher_steps
        times = torch.linspace(1, end, self.teacher_steps, dtype=torch.float64, device=room.x_0.device)
        step = room.drawn(self.teacher_steps)
        t, s = times[step], times[(step + self.skip).clamp(max=self.teacher_steps - 1)]
        x_t = noised(room.schedule, room.x_0, room.noise(), t)
        told = room.teacher(x_t, t)
        said = room.student(_ddim(room.schedule, x_t, told, t, s), s)
        last = expand_as(step == self.teacher_steps - 1, x_t)
        return Lesson(x_t, t, torch.where(last, told, said))


Distillation = TrajectoryDistillation | ProgressiveDistillation | ConsistencyDistillation


def _ddim(schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return x_s of the deterministic step from the times ``t`` to ``s``, (B,) (Song et al., 2021, equation 12)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(schedule, x_t, t), _levels(schedule, x_t, s)
    return (alpha_s * x_0 + sigma_s / sigma_t * (x_t - alpha_t * x_0)).to(x_t.dtype)


def _leads_to(schedule: NoiseSchedule, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the x_0 with which the step of `_ddim` from ``x_t`` ends at ``x_s`` (Salimans & Ho, 2022, equation 43)."""
    t, s = t.expand(len(x_t)), s.expand(len(x_t))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(schedule, x_t, t), _levels(schedule, x_t, s)
    kept = sigma_s / sigma_t
    return ((x_s - kept * x_t) / (alpha_s - kept * alpha_t)).to(x_t.dtype)


def _levels(schedule: NoiseSchedule, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule.alpha_sigma(t)
    return expand_as(alpha, like), expand_as(sigma, like)
