import pytest
import torch

from vidiff.diffusion.schedule import CosineSchedule
from vidiff.errors import ConfigError
from vidiff.model_folder import SamplingConfig
from vidiff.sampling.loop import sample
from vidiff.sampling.solvers import DDPM, Euler
from vidiff.sampling.times import uniform_times


def gaussian(x_t, t):
    """Return E[x_0 | x_t] of a standard normal distribution."""
    alpha, _ = CosineSchedule().alpha_sigma(t)
    return alpha.view(-1, 1, 1, 1, 1) * x_t


@pytest.mark.parametrize("solver", [Euler(), DDPM()])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_samples_of_a_gaussian_deviate_by_the_temperature(solver, temperature):
    """Everything is linear here, so that all noise, the first and the fresh, scales the result."""
    generator = torch.Generator().manual_seed(0)

    def randn():
        return torch.randn(4000, 1, 1, 1, 1, generator=generator, dtype=torch.float64)

    found = sample(
        gaussian, CosineSchedule(), solver, randn(), uniform_times(100), randn=randn, temperature=temperature
    )
    # At t_max all is noise; 100 steps leave an error of the discretization.
    assert found.std().item() == pytest.approx(temperature, abs=0.03)


def test_a_temperature_of_one_changes_no_bit():
    def made(**kwargs):
        generator = torch.Generator().manual_seed(0)
        randn = lambda: torch.randn(3, 1, 1, 2, 2, generator=generator)  # noqa: E731
        return sample(gaussian, CosineSchedule(), DDPM(), randn(), uniform_times(5), randn=randn, **kwargs)

    assert torch.equal(made(), made(temperature=1.0)) and not torch.equal(made(), made(temperature=0.9))


def test_a_negative_temperature_is_refused():
    with pytest.raises(ConfigError, match="temperature is at least 0"):
        SamplingConfig(temperature=-0.1)
