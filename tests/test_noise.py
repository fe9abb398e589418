import pytest
import torch

from vidiff.sampling.noise import SeededNoise


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
