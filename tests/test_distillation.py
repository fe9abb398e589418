from dataclasses import replace

import pytest
import torch
from rich.console import Console

from tests.clips import write_folder
from tests.mixtures import Mixture
from vidiff import config
from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule
from vidiff.errors import ConfigError
from vidiff.model_folder import AUTOENCODER, ModelConfig, SamplingConfig, save_autoencoder
from vidiff.models.autoencoder import VideoVAE, VideoVAEConfig
from vidiff.models.dit import DiTConfig
from vidiff.pipeline import load
from vidiff.sampling.loop import sample
from vidiff.sampling.multistep import DPMpp2M
from vidiff.sampling.one_step import DDIM
from vidiff.train.checkpoint_model import checkpoint_models
from vidiff.train.distillation import (
    Classroom,
    ConsistencyDistillation,
    ProgressiveDistillation,
    TrajectoryDistillation,
)
from vidiff.train.distillation_stage import DistillationStage, DistillationStageConfig
from vidiff.train.recipe import Recipe, run
from vidiff.train.trainer import TrainerConfig
from vidiff.types import Batch, Size
from vidiff.weights import write_tensors

QUIET = Console(quiet=True)
VAE = VideoVAEConfig(
    latent_channels=6, dim=16, dim_mult=(1,), num_res_blocks=0, temporal_downsample=(), patch_size=8, patch_frames=4
)
FEW = SamplingConfig(solver=DDIM(), num_steps=4, guidance=Guidance(scale=1.0))
METHODS = [TrajectoryDistillation(teacher_steps=8), ProgressiveDistillation(), ConsistencyDistillation(teacher_steps=6)]


def room(sampling, student=None, count=6, schedule=None):
    schedule = schedule or CosineSchedule()
    mixture = Mixture(schedule)
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(count, 1, 1, 1, 1, generator=generator, dtype=torch.float64)
    return Classroom(mixture, student or mixture, schedule, sampling, x_0, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("last_t", [0.0, 0.5])
@pytest.mark.parametrize("schedule", [CosineSchedule(), FlowSchedule()], ids=repr)
def test_a_student_that_learned_its_lessons_ends_where_the_teacher_does(schedule, last_t):
    sampling = replace(FEW, last_t=last_t)
    method = TrajectoryDistillation(teacher_steps=8 if last_t == 0 else 7)
    taught = room(sampling, schedule=schedule)
    lesson = method.lesson(taught)
    answers = dict(zip(sampling.times(schedule)[:-1].tolist(), lesson.x_0.chunk(4), strict=True))
    noise = lesson.x_t.chunk(4)[0]
    student = lambda x, t: answers[t[0].item()]  # noqa: E731
    found = sample(student, schedule, DDIM(), noise, sampling.times(schedule))
    many = replace(sampling, num_steps=method.teacher_steps).times(schedule)
    assert torch.allclose(found, sample(taught.teacher, schedule, DPMpp2M(), noise, many), atol=1e-6)


@pytest.mark.parametrize("last_t", [0.0, 0.5])
def test_one_progressive_step_is_two_of_the_teacher(last_t):
    sampling = replace(FEW, last_t=last_t)
    taught = room(sampling)
    lesson = ProgressiveDistillation().lesson(taught)
    times = sampling.times(taught.schedule)
    seen = set()
    for index in range(len(lesson.t)):
        x_t, t, x_0 = (part[index : index + 1] for part in lesson)
        step = int((times == t).nonzero()[0])
        seen.add(step)
        grid = [times[step], (times[step] + times[step + 1]) / 2, times[step + 1]]
        if last_t and step == 3:
            grid = [grid[0], grid[2]]
        _, sigma = taught.schedule.alpha_sigma(times[step])
        teacher = sample(taught.teacher, taught.schedule, DDIM(), x_t / sigma, torch.stack(grid))
        student = sample(lambda x, t, x_0=x_0: x_0, taught.schedule, DDIM(), x_t / sigma, times[step : step + 2])
        assert torch.allclose(student, teacher, atol=1e-9)
    assert len(seen) > 1


def test_a_perfect_consistency_function_has_nothing_to_learn():
    # Where all data is one point, every estimate is that point, and the teacher's step stays on the trajectory.
    point = lambda x, t: torch.full_like(x, 0.7)  # noqa: E731
    taught = replace(room(FEW, student=point), teacher=point)
    lesson = ConsistencyDistillation().lesson(taught)
    assert torch.allclose(lesson.x_0, point(lesson.x_t, lesson.t))


def test_the_boundary_of_consistency_is_what_the_teacher_says():
    sampling = replace(FEW, last_t=0.5)
    taught = room(sampling, student=lambda x, t: torch.full_like(x, 9.0), count=40)
    lesson = ConsistencyDistillation(teacher_steps=4).lesson(taught)
    last = lesson.t == 0.5
    assert 0 < last.sum() < 40
    assert torch.allclose(lesson.x_0[last], taught.teacher(lesson.x_t, lesson.t)[last])
    assert (lesson.x_0[~last] == 9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": TrajectoryDistillation(teacher_steps=10)}, r"fast: teacher_steps must be 4 \* n.* try 8"),
        (
            {"method": TrajectoryDistillation(teacher_steps=12), "sampling": replace(FEW, last_t=0.5)},
            r"teacher_steps must be 3 \* n \+ 1.* try 13",
        ),
        (
            {"method": ConsistencyDistillation(teacher_steps=5, skip=5)},
            "skip lies in 1 to teacher_steps - 1 = 4",
        ),
        ({"sampling": replace(FEW, guidance=Guidance(scale=2.0))}, "set sampling.guidance.scale to 1, got 2.0"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(DistillationStageConfig(method=TrajectoryDistillation(teacher_steps=8)), **change)


def recipe(folder, *stages):
    return Recipe("student", DataConfig(folder, frames=9, height=32, width=32), stages)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_folder(folder, 6)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A tiny model folder with random weights whose text matters."""
    folder = tmp_path_factory.mktemp("teacher")
    settings = ModelConfig(
        backbone=DiTConfig(patch_size=(1, 2, 2), dim=16, depth=1, num_heads=2),
        predicts="x0",
        sampling=SamplingConfig(num_steps=8, guidance=Guidance(scale=3.0)),
        size=Size(9, 32, 32, 12.0),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VideoVAE(VAE)
        denoiser = settings.denoiser(vae.latents)
        for parameter in denoiser.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    (folder / AUTOENCODER).mkdir()
    save_autoencoder(folder / AUTOENCODER, vae)
    write_tensors(folder / "model.safetensors", denoiser.state_dict())
    (folder / "config.yaml").write_text(config.dump(settings))
    return folder


def stage(teacher, **changes):
    trainer = TrainerConfig(max_steps=3, batch_size=2, ema_decay=0.5, save_every=1, log_every=1, preview_every=3)
    settings = {"name": "fast", "teacher": str(teacher), "trainer": trainer, "sampling": FEW} | changes
    return DistillationStageConfig(**({"method": TrajectoryDistillation(teacher_steps=8)} | settings))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
def test_a_student_trains_and_its_folder_generates_without_guidance(clips, teacher, tmp_path, method):
    folder = run(recipe(clips, stage(teacher, method=method, drop_text=0.5)), tmp_path, QUIET)
    pipeline = load(folder)
    assert pipeline.config.sampling == FEW and pipeline.config.name == "student"
    latents = pipeline.sample(["a ball"], [0], pipeline.config.size, pipeline.config.sampling)
    assert torch.isfinite(latents).all()
    taught = load(teacher)
    moved = [
        not torch.equal(a.bfloat16().float(), b)
        for a, b in zip(taught.denoiser.state_dict().values(), pipeline.denoiser.state_dict().values(), strict=True)
    ]
    assert any(moved)


def test_a_resumed_distillation_equals_an_unbroken_one(clips, teacher, tmp_path):
    whole = stage(teacher)
    ends = []
    for name, stops in (("whole", [3]), ("broken", [2, 3])):
        for steps in stops:
            folder = run(
                recipe(clips, replace(whole, trainer=replace(whole.trainer, max_steps=steps))), tmp_path / name, QUIET
            )
        ends.append((folder / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_rounds_of_distillation_teach_one_another(clips, teacher, tmp_path):
    first = stage(teacher, name="eight", method=ProgressiveDistillation(), sampling=replace(FEW, num_steps=8))
    second = stage("eight", name="four", method=ProgressiveDistillation())
    folder = run(recipe(clips, first, second), tmp_path, QUIET)
    assert load(folder).config.sampling.num_steps == 4


@pytest.mark.parametrize(("steps", "last_t"), [(8, 0.5), (7, 0.25), (4, 0.5)])
def test_a_round_that_does_not_halve_the_round_before_is_refused(clips, teacher, steps, last_t):
    def rounds(steps, last_t):
        first = replace(FEW, num_steps=steps, last_t=last_t)
        second = stage("first", method=ProgressiveDistillation(), sampling=replace(FEW, last_t=0.5))
        return recipe(clips, stage(teacher, name="first", method=ProgressiveDistillation(), sampling=first), second)

    assert rounds(7, 0.5).stages[1].teacher == "first"
    with pytest.raises(ConfigError, match=f"4 steps with last_t 0.5 halve 7 of first .* got {steps} with {last_t}"):
        rounds(steps, last_t)


def test_checkpoints_of_a_student_are_whole_models(clips, teacher, tmp_path):
    model = run(recipe(clips, stage(teacher)), tmp_path / "run", QUIET, torch.float32)
    names, found = checkpoint_models([str(tmp_path / "run" / "fast")], tmp_path / "out")
    steps = {found[name].step: load(found[name].folder) for name in names}
    assert steps.keys() == {2, 3} and steps[3].config == load(model).config
    for name, weight in load(model).denoiser.state_dict().items():
        assert torch.equal(weight, steps[3].denoiser.state_dict()[name])


def test_whom_to_attribute_goes_with_the_weights_and_what_was_measured_does_not(clips, teacher, tmp_path):
    (teacher / "ATTRIBUTION.txt").write_text("by someone")
    (teacher / "README.md").write_text("scores 0.9")
    model = run(recipe(clips, stage(teacher)), tmp_path, QUIET)
    assert (model / "ATTRIBUTION.txt").read_text() == "by someone" and not (model / "README.md").exists()


def test_the_teacher_is_asked_where_the_latents_are():
    asked = []

    def teacher(x_t, t):
        asked.append((x_t.device.type, t.device.type))
        return x_t

    class Elsewhere(Classroom):
        def noise(self):
            return torch.zeros(self.x_0.shape, device=self.x_0.device)

    x_0 = torch.zeros(2, 1, 1, 1, 1, device="meta")
    there = Elsewhere(teacher, teacher, CosineSchedule(), FEW, x_0, torch.Generator())
    lesson = TrajectoryDistillation(teacher_steps=8, solver=DDIM()).lesson(there)
    assert asked == [("meta", "meta")] * 8 and lesson.t.device == lesson.x_0.device == x_0.device


def test_the_guidance_of_the_teacher_is_what_is_learned(clips, teacher):
    # With as many steps and the same solver, a copy of the teacher has only its guidance to learn.
    losses = {}
    data = ClipDataset(DataConfig(clips, frames=9, height=32, width=32))
    for scale in (1.0, 3.0):
        taught = load(teacher)
        settings = replace(taught.config, sampling=replace(taught.config.sampling, guidance=Guidance(scale=scale)))
        plan = stage(teacher, method=TrajectoryDistillation(teacher_steps=4, solver=DDIM()))
        shape = taught.autoencoder.latents.shape(9, 32, 32)
        tested = DistillationStage(
            plan, settings, taught.denoiser, taught.denoiser, data, [], None, taught.autoencoder, {}
        )
        batch = Batch(["a"], latents=torch.zeros(1, *shape), text=taught.text(["a ball"]))
        losses[scale] = tested.loss("model", batch, 0, torch.Generator().manual_seed(0))["mse"].item()
    assert losses[1.0] < 1e-8 < 1e-4 < losses[3.0]


def test_gradients_reach_weights_that_autocast_has_kept_without_them(clips, teacher, monkeypatch):
    kept, linear = {}, torch.nn.functional.linear

    def as_older_torch(x, weight, bias=None):
        return linear(
            x.bfloat16(), kept.setdefault(weight, weight.bfloat16()), None if bias is None else bias.bfloat16()
        )

    monkeypatch.setattr(torch.nn.functional, "linear", as_older_torch)
    monkeypatch.setattr(torch, "clear_autocast_cache", kept.clear)
    taught, student = load(teacher), load(teacher).denoiser.requires_grad_(True)
    plan = stage(teacher, method=ConsistencyDistillation(teacher_steps=6))
    data = ClipDataset(DataConfig(clips, frames=9, height=32, width=32))
    tested = DistillationStage(plan, taught.config, taught.denoiser, student, data, [], None, taught.autoencoder, {})
    shape = taught.autoencoder.latents.shape(9, 32, 32)
    batch = Batch(["a"], latents=torch.zeros(1, *shape), text=taught.text(["a ball"]))
    with torch.autocast("cpu", torch.bfloat16):
        tested.loss("model", batch, 0, torch.Generator().manual_seed(0))["total"].backward()
    layers = [layer for layer in student.modules() if isinstance(layer, torch.nn.Linear)]
    assert layers and all(layer.weight.grad is not None for layer in layers)


def test_an_unknown_teacher_and_one_that_is_no_model_are_refused(clips):
    with pytest.raises(ConfigError, match=r"teacher 'spritess' is no earlier .*Did you mean sprites"):
        recipe(clips, stage("spritess"))


def test_clips_of_another_size_than_the_teacher_makes_are_refused(clips, teacher, tmp_path):
    odd = Recipe("student", DataConfig(clips, frames=5, height=32, width=32), (stage(teacher),))
    with pytest.raises(ConfigError, match="fast: its clips have 5 frames of 32x32, and its teacher makes 9 of 32x32"):
        run(odd, tmp_path, QUIET)


def test_what_the_teacher_keeps_away_from_is_learned(teacher):
    taught, losses = load(teacher), []
    shape = taught.autoencoder.latents.shape(9, 32, 32)
    plan = stage(teacher, method=TrajectoryDistillation(teacher_steps=4, solver=DDIM()), huber=0.1)
    for negative in (None, taught.text(["a storm"])):
        tested = DistillationStage(
            plan, taught.config, taught.denoiser, taught.denoiser, _NoClips(), [], None, None, {}, negative
        )
        batch = Batch(["a"], latents=torch.zeros(1, *shape), text=taught.text(["a ball"]))
        losses.append(tested.loss("model", batch, 0, torch.Generator().manual_seed(0))["mse"].item())
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


class _NoClips:
    def __len__(self):
        return 1

    def groups(self):
        return None
