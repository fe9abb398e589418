"""What super-resolution stages take away and add."""

import pytest
import torch

from vidiff.errors import ConfigError
from vidiff.refinement import SpatialSR, TemporalSR
from vidiff.refining import guesses
from vidiff.types import Size


def moving_ramp(frames=9, side=8):
    t = torch.linspace(-0.5, 0.5, frames)[:, None, None]
    x = torch.linspace(-0.4, 0.4, side)
    return (t + x).expand(1, 3, frames, side, side).clone()


def test_blending_restores_linear_motion_and_enlarging_a_smooth_picture():
    video = moving_ramp()
    torch.testing.assert_close(TemporalSR().up(TemporalSR().down(video)), video)
    large = moving_ramp(side=32)
    guess = SpatialSR().up(SpatialSR().down(large))
    assert guess.shape == large.shape
    assert (guess - large)[..., 6:-6, 6:-6].abs().max() < 0.02


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_known_frames_are_put_back(factor):
    refines = TemporalSR(factor=factor)
    known = torch.randint(0, 256, (2, 4, 6, 6, 3), dtype=torch.uint8)
    made = torch.zeros(2, 3 * factor + 1, 6, 6, 3, dtype=torch.uint8)
    out = refines.restored(made, known)
    assert torch.equal(out[:, ::factor], known)
    assert out[:, 1::factor].sum() == 0 and made.sum() == 0


@pytest.mark.parametrize("refines", [TemporalSR(), TemporalSR(factor=3), SpatialSR(), SpatialSR(factor=2)])
def test_sizes_go_there_and_back(refines):
    size = Size(7, 16, 24, 12.0)
    assert refines.before(refines.size(size)) == size
    video = torch.zeros(1, 3, 7, 16, 24)
    grown = refines.size(size)
    assert refines.up(video).shape[2:] == (grown.frames, grown.height, grown.width)


@pytest.mark.parametrize(
    ("refines", "size", "word"),
    [(TemporalSR(), Size(32, 64, 64, 24), "try 3"), (SpatialSR(), Size(33, 250, 256, 24), "try 256x2")],
)
def test_a_size_out_of_reach_names_the_nearest(refines, size, word):
    with pytest.raises(ConfigError, match=word):
        refines.before(size)


@pytest.mark.parametrize("refines", [TemporalSR(), TemporalSR(factor=3), SpatialSR(factor=2)])
@pytest.mark.parametrize("frame_stride", [1, 4])
def test_guesses_in_pieces_are_the_guess_of_the_whole_clip(refines, frame_stride):
    clips = torch.randint(0, 256, (2, 5, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = refines.up(clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
    pieces = list(guesses(refines, clips, frame_stride))
    assert pieces[0].shape[2] == 1 and all(piece.shape[2] == frame_stride for piece in pieces[1:-1])
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole)


@pytest.mark.parametrize("wrong", [{"factor": 1}, {"noise": 0.5, "max_noise": 0.4}, {"max_noise": 1.0}])
def test_settings_that_make_no_sense_are_refused(wrong):
    for kind in (TemporalSR, SpatialSR):
        with pytest.raises(ConfigError):
            kind(**wrong)
