"""Folded pixels: what goes in comes out, whole or in pieces."""

import pytest
import torch

from vidiff.errors import ConfigError
from vidiff.models.pixels import PixelAutoencoder, PixelAutoencoderConfig

PIXELS = PixelAutoencoder(PixelAutoencoderConfig(patch_size=4, patch_frames=2))


def clip(frames=5):
    return torch.rand(2, 3, frames, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_nothing_is_lost(frames):
    latents = PIXELS.encode(clip(frames))
    assert latents.shape[1:] == PIXELS.latents.shape(frames, 8, 12) == (96, (frames - 1) // 2 + 1, 2, 3)
    torch.testing.assert_close(PIXELS.decode(latents), clip(frames))


def test_pieces_add_up_to_the_whole():
    video = clip(7)
    pieces = list(PIXELS.encode_pieces([video[:, :, :1], video[:, :, 1:5], video[:, :, 5:]]))
    assert torch.equal(torch.cat(pieces, dim=2), PIXELS.encode(video))
    latents = PIXELS.encode(video)
    assert torch.equal(torch.cat(list(PIXELS.decode_stream(latents, 3)), dim=2), PIXELS.decode(latents))


def test_the_first_frame_is_the_mean_of_its_copies():
    latents = PIXELS.encode(clip(1))
    latents.unflatten(1, (3, 2, 16))[:, :, 0] += 0.2
    expected = (clip(1) + 0.1 * PIXELS.config.std).clamp(-1, 1)
    torch.testing.assert_close(PIXELS.decode(latents), expected)


def test_the_preview_is_the_mean_color():
    preview = PIXELS.preview(PIXELS.encode(clip(3)))
    expected = clip(3)[:, :, 1:, :4, :4].mean((2, 3, 4))
    torch.testing.assert_close(preview[:, :, 1, 0, 0], expected)


def test_sizes_off_the_grid_and_senseless_settings_are_refused():
    with pytest.raises(ConfigError, match="try 5"):
        PIXELS.encode(clip(4))
    with pytest.raises(ConfigError, match="patch_size"):
        PixelAutoencoderConfig(patch_size=0)
