"""The super-resolution stages that ship see one moment at a time: what they make in windows has no seams."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.clips import SHARED
from vidiff import refining
from vidiff.data.video_io import read_clip
from vidiff.pipeline import find_model, load
from vidiff.sampling.windows import Windows


@pytest.fixture(scope="module")
def refiners():
    pipeline = load(find_model("toyworld"))
    return {one.name: (one, pipeline.text([""], one.denoiser)) for one in pipeline.refiners}


@pytest.mark.parametrize(("name", "shape"), [("temporal_sr", (9, 48, 72)), ("spatial_sr", (5, 16, 24))])
def test_a_real_clip_in_windows_is_the_clip_that_is_made_at_once(refiners, name, shape, monkeypatch):
    path = SHARED / "data" / "odd_clips" / "flipping_a_pancake.mkv"
    if not path.is_file():
        pytest.skip("../shared/data is not here")
    refiner, text = refiners[name]
    frames = torch.from_numpy(read_clip(path).frames[: shape[0]]).permute(3, 0, 1, 2)[None].float()
    clips = F.interpolate(frames, shape, mode="area").round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    finer = refiner.refines.up(torch.zeros(1, 3, *shape)).shape[2:]

    def made():
        places = refiner.windows(finer).over(finer)
        return len(places), refiner.refine(clips, text, text, [0], refiner.config.sampling)

    at_once, whole = made()
    monkeypatch.setattr(refining, "WINDOWS", Windows((3, *finer[1:]), (2, 0, 0)))  # as much room as three frames take
    count, pieces = made()
    assert at_once == 1 and count > 1
    assert (pieces.int() - whole.int()).abs().max() <= 1  # sums over more frames may be taken in another order


@pytest.mark.parametrize("name", ["temporal_sr", "spatial_sr"])
@pytest.mark.parametrize(
    "shape", [(9, 64, 64), (129, 512, 512), (33, 1080, 1920), (3, 2160, 3840), (3, 2880, 5120), (1, 16, 16)]
)
def test_windows_hold_whole_frames_while_they_fit_and_never_more(refiners, name, shape):
    refiner, _ = refiners[name]
    windows = refiner.windows(shape)
    least = 3 if name == "temporal_sr" else 1  # a known frame, and a latent of one that is made and the next one
    fits = least * math.prod(shape[1:]) <= refining.WHOLE
    assert (windows.size[1:] == shape[1:]) == fits
    most = math.prod(refining.WINDOWS.size) if windows.size[0] > least else refining.WHOLE
    assert math.prod(windows.size) <= most
    covered = torch.zeros(shape[0], dtype=torch.int64)
    for frames, rows, columns in windows.over(shape):
        if rows.start == columns.start == 0:
            covered[frames] += 1
    assert covered.min() >= 1
    if fits and shape[0] > windows.size[0]:
        ends = covered[: -windows.size[0]]  # the last window reaches back as far as it has to
        assert ends.max() <= (2 if name == "temporal_sr" else 1)
