"""Published networks behind one call, with random weights in their place."""

import hashlib
import json
import sys
import warnings
from dataclasses import replace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from tests.test_text_encoders import save_tokenizer
from vidiff import config
from vidiff.errors import CheckpointError, ConfigError, DataError
from vidiff.metrics.extractors import (
    CLIP,
    DINOV2_EDM2,
    FID_ARCHIVE,
    FID_CLEAN,
    FVD_CD,
    FVD_ORIGINAL,
    FVD_STYLEGAN_V,
    VIDEOMAE,
    CLIPConfig,
    Dinov2Config,
    ExtractorConfig,
    I3DConfig,
    InceptionConfig,
    VideoMAEConfig,
    build_extractor,
)
from vidiff.metrics.preprocess import Preprocess

SIDE = 32  # pixels a side that the tiny networks read
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = TOWER | {"image_size": SIDE, "patch_size": 16}


def noise(frames=9, height=20, width=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator).byte()


class I3D(nn.Module):
    """The signature of the published archive around one layer."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(6, 400)

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool):
        x = x.float()
        if resize:
            x = F.interpolate(x, [x.shape[2], 224, 224], mode="trilinear", align_corners=False)
        if rescale:
            x = 2 * x / 255 - 1
        features = self.logits(torch.cat([x.mean((2, 3, 4)), x.std((2, 3, 4))], 1))
        return features if return_features else features.softmax(1)


class Inception(nn.Module):
    def __init__(self, dim: int = 2048):
        super().__init__()
        self.out = nn.Linear(12, dim)

    def forward(self, img: torch.Tensor, return_features: bool = False):
        return self.out(F.adaptive_avg_pool2d(img.float() / 255, 2).flatten(1))[:, :, None, None]


class Other(nn.Module):
    def forward(self, x: torch.Tensor):
        return x


def archived(network, path):
    """Save a network as TorchScript and return the file's sha256."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def saved(cls, folder, **settings):
    """Save a network of transformers with random weights and return it."""
    import transformers

    torch.manual_seed(0)
    network = getattr(transformers, cls)(getattr(transformers, cls).config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    network.save_pretrained(folder)
    return network


def saved_clip(folder):
    text = TOWER | {
        "vocab_size": save_tokenizer(folder),
        "max_position_embeddings": 12,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    clip = saved("CLIPModel", folder, text_config=text, vision_config=VISION, projection_dim=8)
    return clip, CLIPConfig(source=str(folder), preprocess=replace(CLIP, size=SIDE))


def saved_videomae(folder, cls="VideoMAEModel"):
    network = saved(cls, folder, **VISION, num_frames=4)
    return network, VideoMAEConfig(source=str(folder), preprocess=replace(VIDEOMAE, size=SIDE, frames=4))


def saved_dinov2(folder):
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    network = saved("Dinov2Model", folder, **settings, image_size=48, patch_size=16)
    return network, Dinov2Config(source=str(folder), preprocess=replace(DINOV2_EDM2, size=SIDE))


def saved_archive(folder, kind):
    network = I3D() if kind == "i3d" else Inception()
    path = folder / "archive.pt"
    cls = I3DConfig if kind == "i3d" else InceptionConfig
    preprocess = replace(FVD_STYLEGAN_V, frames=9) if kind == "i3d" else FID_ARCHIVE
    return network, cls(weights=str(path), sha256=archived(network, path), preprocess=preprocess)


MADE = {
    "i3d": lambda folder: saved_archive(folder, "i3d"),
    "inception": lambda folder: saved_archive(folder, "inception"),
    "videomae": saved_videomae,
    "dinov2": saved_dinov2,
    "clip": saved_clip,
}
every_kind = pytest.mark.parametrize("kind", MADE)


def rewritten(folder, change):
    """Let ``change`` loose on the tensors of a saved network."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@every_kind
def test_batches_change_nothing(tmp_path, kind):
    extractor = build_extractor(MADE[kind](tmp_path)[1])
    clips = torch.stack([noise(seed=seed) for seed in range(4)])
    whole = extractor(clips)
    rows = 4 * 9 if extractor.per_frame else 4
    assert whole.shape == (rows, extractor.dim) and whole.dtype == torch.float32 and whole.std() > 0.01
    for size in (1, 3):
        parts = torch.cat([extractor(part) for part in clips.split(size)])
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@every_kind
def test_clips_of_different_sizes_go_together(tmp_path, kind):
    extractor = build_extractor(MADE[kind](tmp_path)[1])
    clips = [noise(), noise(10, 24, 24, seed=1), noise(seed=2)]
    alone = torch.cat([extractor([clip]) for clip in clips])
    torch.testing.assert_close(extractor(clips), alone, atol=1e-5, rtol=1e-5)
    assert extractor([]).shape == (0, extractor.dim)


@every_kind
def test_red_and_blue_are_told_apart(tmp_path, kind):
    extractor = build_extractor(MADE[kind](tmp_path)[1])
    red = torch.tensor([255, 0, 0]).byte().expand(9, 16, 16, 3)
    assert (extractor([red]) - extractor([red.flip(3)])).abs().max() > 1e-3


@every_kind
def test_yaml_holds_all_of_it(tmp_path, kind):
    one = MADE[kind](tmp_path)[1]
    assert config.from_dict(ExtractorConfig, config.to_dict(one)) == one
    assert {cls.kind for cls in get_args(ExtractorConfig)} == set(MADE)


def test_i3d_resizes_and_scales_itself_as_in_stylegan_v(tmp_path):
    network, ours = saved_archive(tmp_path, "i3d")
    found = build_extractor(ours)(noise()[None])
    expected = network(noise().permute(3, 0, 1, 2)[None], rescale=True, resize=True, return_features=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("preprocess", [FVD_ORIGINAL, FVD_CD], ids=str)
def test_i3d_takes_clips_that_are_resized_and_scaled_already(tmp_path, preprocess):
    network, ours = saved_archive(tmp_path, "i3d")
    preprocess = replace(preprocess, frames=9)
    found = build_extractor(replace(ours, preprocess=preprocess))(noise()[None])
    ready = preprocess(noise()).transpose(0, 1)[None]
    torch.testing.assert_close(found, network(ready, rescale=False, resize=False, return_features=True))


@pytest.mark.parametrize("preprocess", [FID_ARCHIVE, FID_CLEAN], ids=str)
def test_inception_gives_a_row_for_each_frame(tmp_path, preprocess):
    network, ours = saved_archive(tmp_path, "inception")
    found = build_extractor(replace(ours, preprocess=preprocess))(noise(3)[None])
    torch.testing.assert_close(found, network(preprocess(noise(3))).flatten(1))


def test_an_archive_opens_only_with_its_sha256(tmp_path):
    _, ours = saved_archive(tmp_path, "i3d")
    for wrong in ("", "0" * 64, ours.sha256[:-1]):
        with pytest.raises(
            ConfigError, match=f"code that would run here.*allow it: --weights i3d=.*/archive.pt@{ours.sha256}$"
        ):
            build_extractor(replace(ours, sha256=wrong))
    assert build_extractor(replace(ours, sha256=ours.sha256.upper())).version == ours.sha256
    path = tmp_path / "archive.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="so code that would run here"):
        build_extractor(ours)


def test_opening_an_archive_is_quiet(tmp_path):
    _, ours = saved_archive(tmp_path, "i3d")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_extractor(ours)(noise()[None])


def test_missing_archives_say_what_to_get():
    with pytest.raises(
        ConfigError, match=r"i3d: no file ''; get i3d_torchscript\.pt, .*name it: --weights i3d=FILE@SHA256"
    ):
        build_extractor(I3DConfig())
    with pytest.raises(ConfigError, match=r"no file 'nowhere\.pt'; get inception-2015-12-05\.pt"):
        build_extractor(InceptionConfig(weights="nowhere.pt"))


def test_what_is_not_the_archive_is_refused(tmp_path):
    path = tmp_path / "archive.pt"
    path.write_bytes(b"not an archive")
    text = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(CheckpointError, match="not a TorchScript archive"):
        build_extractor(I3DConfig(weights=str(path), sha256=text))
    with pytest.raises(CheckpointError, match="does not take rescale, resize, return_features"):
        build_extractor(I3DConfig(weights=str(path), sha256=archived(Other(), path)))
    narrow = build_extractor(InceptionConfig(weights=str(path), sha256=archived(Inception(7), path)))
    with pytest.raises(CheckpointError, match=r"returns \(2, 7\) where inception returns \(2, 2048\)"):
        narrow(noise(2)[None])


def test_videomae_is_the_mean_of_the_models_tokens(tmp_path):
    network, ours = saved_videomae(tmp_path)
    extractor = build_extractor(ours)
    with torch.no_grad():
        expected = network(extractor.preprocess(noise())[None]).last_hidden_state.mean(1)
    torch.testing.assert_close(extractor(noise()[None]), expected, atol=1e-5, rtol=1e-5)


def test_videomae_of_a_classifier_is_what_its_classifier_reads(tmp_path):
    network, ours = saved_videomae(tmp_path, "VideoMAEForVideoClassification")
    extractor = build_extractor(ours)
    with torch.no_grad():
        logits = network(extractor.preprocess(noise())[None]).logits
        torch.testing.assert_close(network.classifier(extractor(noise()[None])), logits, atol=1e-5, rtol=1e-5)


def test_dinov2_is_the_models_class_token(tmp_path):
    network, ours = saved_dinov2(tmp_path)
    extractor = build_extractor(ours)
    with torch.no_grad():
        expected = network(extractor.preprocess(noise())).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(noise()[None]), expected, atol=1e-5, rtol=1e-5)


def test_clip_is_the_models_image_features_in_either_shape(tmp_path):
    network, ours = saved_clip(tmp_path)
    extractor = build_extractor(ours)
    with torch.no_grad():
        features = network.get_image_features(extractor.preprocess(noise()))
    features = getattr(features, "pooler_output", features)
    found = extractor(noise()[None])
    torch.testing.assert_close(found, features, atol=1e-5, rtol=1e-5)
    extractor.network.get_image_features = lambda pixel_values: features  # as before transformers 5
    torch.testing.assert_close(extractor(noise()[None]), features)


def test_half_precision_weights_compute_in_float32(tmp_path):
    network, ours = saved_dinov2(tmp_path)
    network.half().save_pretrained(tmp_path)
    extractor = build_extractor(ours)
    with torch.no_grad():
        expected = network.float()(extractor.preprocess(noise())).last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(noise()[None]), expected, atol=1e-5, rtol=1e-5)


def drop(tensors):
    del tensors["visual_projection.weight"]


def add(tensors):
    tensors["spare.weight"] = torch.zeros(2)


def bend(tensors):
    tensors["visual_projection.weight"] = torch.zeros(8, 15)


@pytest.mark.parametrize(
    ("change", "word"),
    [(drop, r"missing visual_projection\.weight"), (add, r"unexpected spare\.weight"), (bend, "CLIPModel")],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, word):
    _, ours = saved_clip(tmp_path)
    rewritten(tmp_path, change)
    with pytest.raises(CheckpointError, match=word):
        build_extractor(ours)


def test_folders_of_something_else_are_refused(tmp_path):
    _, ours = saved_dinov2(tmp_path)
    with pytest.raises(CheckpointError, match="dinov2 does not fit extractor kind clip"):
        build_extractor(CLIPConfig(source=str(tmp_path)))
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"architectures": ["Dinov2Backbone"]}))
    with pytest.raises(CheckpointError, match="holds a Dinov2Backbone; extractor kind dinov2 reads Dinov2Model"):
        build_extractor(ours)


def test_pickled_and_damaged_weights_are_never_read(tmp_path):
    _, ours = saved_dinov2(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="cannot be read as Dinov2Model"):
        build_extractor(ours)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are never read"):
        build_extractor(ours)


def test_hub_ids_need_a_commit_and_leave_to_download():
    with pytest.raises(ConfigError, match="neither a folder nor a hub id"):
        build_extractor(CLIPConfig())
    with pytest.raises(ConfigError, match="40-digit commit"):
        build_extractor(CLIPConfig(source="openai/clip-vit-base-patch32"))
    with pytest.raises(CheckpointError, match=f"use hf download nobody/nothing --revision {'0' * 40} to fetch it"):
        build_extractor(CLIPConfig(source="nobody/nothing", revision="0" * 40))


def test_without_transformers_one_is_told_what_to_install(tmp_path, monkeypatch):
    _, ours = saved_dinov2(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'vidiff\[eval\]'"):
        build_extractor(ours)


def test_the_version_follows_the_weights(tmp_path):
    _, ours = saved_dinov2(tmp_path)
    first = build_extractor(ours).version
    assert first == build_extractor(ours).version
    rewritten(tmp_path, lambda tensors: next(iter(tensors.values())).flatten()[0].add_(1))
    assert first != build_extractor(ours).version


def test_preprocessing_that_a_network_cannot_read_is_refused(tmp_path):
    for cls, wrong in (
        (I3DConfig, replace(FVD_ORIGINAL, frames=8)),
        (I3DConfig, replace(FVD_ORIGINAL, size=128)),
        (I3DConfig, VIDEOMAE),
        (InceptionConfig, replace(FID_CLEAN, size=224)),
        (InceptionConfig, replace(FID_CLEAN, pixels="unit")),
        (CLIPConfig, Preprocess(filter="archive")),
        (Dinov2Config, Preprocess(pixels="raw")),
    ):
        with pytest.raises(ConfigError, match=r"reads|only archives"):
            cls(preprocess=wrong)
    _, ours = saved_videomae(tmp_path)
    for name, value, right in (("size", 48, 32), ("frames", 8, 4)):
        with pytest.raises(ConfigError, match=rf"preprocess\.{name}: .* reads {right}, got {value}"):
            build_extractor(replace(ours, preprocess=replace(ours.preprocess, **{name: value})))


def test_a_short_clip_is_refused(tmp_path):
    extractor = build_extractor(saved_videomae(tmp_path)[1])
    with pytest.raises(DataError, match="has 3 frames"):
        extractor([noise(), noise(3)])
