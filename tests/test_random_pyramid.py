"""Random filters as an extractor: repeatable, blind to nothing that pixels hold, and cheap."""

import pytest
import torch

from tests.clips import frames
from vidiff.errors import DataError
from vidiff.metrics.random_pyramid import RandomPyramid


def clips(count=3, length=17):
    return [torch.from_numpy(frames(length, 32, 32, index)) for index in range(count)]


def test_rows_repeat_and_do_not_touch_one_another():
    extractor = RandomPyramid()
    rows = extractor(clips())
    assert rows.shape == (3, extractor.dim) and torch.equal(rows, RandomPyramid()(clips()))
    assert torch.equal(rows[1:2], extractor(clips()[1:2]))
    assert extractor.version == RandomPyramid().version != RandomPyramid(seed=1).version


def test_clips_see_the_order_of_frames_and_single_frames_do_not():
    (clip,) = clips(1)
    shuffled = clip[:16][torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    whole, single = RandomPyramid(), RandomPyramid(per_frame=True)
    assert (whole([clip]) - whole([shuffled])).abs().max() > 1e-3
    assert torch.allclose(single([clip]).mean(0), single([shuffled]).mean(0), atol=1e-6)
    assert single([clip]).shape == (16, single.dim)


@pytest.mark.parametrize("per_frame", [False, True])
def test_blur_and_noise_move_features_more_the_stronger_they_are(per_frame):
    extractor = RandomPyramid(per_frame=per_frame)
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(0, 256, (17, 32, 32, 3), generator=generator, dtype=torch.uint8)
    noise = torch.randn(clip.shape, generator=generator)
    base = extractor([clip])
    steps = [(extractor([(clip + s * noise).round().clamp(0, 255).to(torch.uint8)]) - base).norm() for s in (2, 8, 32)]
    assert 0 < steps[0] < steps[1] < steps[2]


def test_short_clips_are_refused():
    with pytest.raises(DataError, match="has 9 frames"):
        RandomPyramid()(clips(1, 9))
