import pytest
import torch

from vidiff.sampling.noise import PlacedNoise, SeededNoise, stage_seed


def test_noise_is_standard_normal_in_float32():
    noise = SeededNoise([0, 1]).randn(100, 100)
    assert noise.shape == (2, 100, 100) and noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert noise.mean((1, 2)).tolist() == pytest.approx([0, 0], abs=0.04)
    assert noise.std((1, 2)).tolist() == pytest.approx([1, 1], abs=0.03)


def test_later_draws_are_new_and_global_state_is_untouched():
    state = torch.get_rng_state()
    noise = SeededNoise([5])
    assert not torch.equal(noise.randn(8), noise.randn(8))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_stage_of_every_seed_has_noise_of_its_own():
    seeds = [stage_seed(seed, stage) for seed in (0, 1, 2**32 - 1) for stage in range(7)]
    assert len({tuple(noise.tolist()) for noise in SeededNoise(seeds).randn(16)}) == len(seeds)
    assert torch.equal(SeededNoise([stage_seed(5, 0)]).randn(16), SeededNoise([5]).randn(16))


def at(*spans):
    return tuple(slice(*span) for span in spans)


def test_noise_of_a_place_is_standard_normal_and_does_not_repeat():
    noise = PlacedNoise([3, 2**32 - 1]).randn(at((4, 9), (50, 210), (0, 200)), use=1)
    assert noise.shape == (2, 3, 5, 160, 200) and noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    assert noise.std((1, 2, 3, 4)).tolist() == pytest.approx([1, 1], abs=0.005)
    assert len(noise.unique()) > 0.99 * noise.numel()  # no tile, frame, channel or sample is another's
    near = [noise.diff(dim=axis).std().item() for axis in range(1, 5)]
    assert near == pytest.approx([2**0.5] * 4, abs=0.01)


def test_windows_are_given_the_same_noise_where_they_overlap():
    noise = PlacedNoise([7])
    whole = noise.randn(at((0, 6), (0, 150), (0, 200)), use=2)
    part = noise.randn(at((2, 5), (60, 130), (63, 64)), use=2)
    assert torch.equal(part, whole[:, :, 2:5, 60:130, 63:64])
    beside = PlacedNoise([8, 7]).randn(at((2, 3), (0, 9), (0, 9)), use=2)
    assert torch.equal(beside[1:], whole[:, :, 2:3, :9, :9])


def test_every_seed_use_frame_and_copy_has_noise_of_its_own():
    one = at((3, 4), (0, 8), (0, 8))
    drawn = [PlacedNoise([seed]).randn(one, use, copy) for seed in (0, 1) for use in (0, 1) for copy in (0, 1, 2)]
    drawn.append(PlacedNoise([0]).randn(at((0, 1), (0, 8), (0, 8)), use=3))  # the numbers of the first key, swapped
    assert len(torch.stack(drawn).unique()) == len(drawn) * 3 * 8 * 8
