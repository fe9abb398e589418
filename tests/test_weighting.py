import math
from typing import get_args

import pytest
import torch

from vidiff.diffusion.prediction import Prediction, target_weights
from vidiff.diffusion.weighting import (
    EDMWeighting,
    MinSNRWeighting,
    P2Weighting,
    SigmoidWeighting,
    SoftMinSNRWeighting,
    VelocityWeighting,
    Weighting,
)
from vidiff.errors import ConfigError

SNR = torch.tensor([0.25, 4.0, 100.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("predicts", "expected"),
    [
        ("eps", [1, 1, 5 / 100]),
        ("x0", [0.25, 4, 5]),
        ("v", [0.25 / 1.25, 4 / 5, 5 / 101]),
        ("flow", [0.25 / 1.5**2, 4 / 3**2, 5 / 11**2]),
    ],
)
def test_min_snr_divides_by_what_the_target_counts_already(predicts, expected):
    assert MinSNRWeighting(gamma=5.0).weights(SNR.log(), predicts).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weighting", [member() for member in get_args(Weighting)])
@pytest.mark.parametrize("predicts", get_args(Prediction))
def test_weights_are_finite_at_pure_data_and_pure_noise(weighting, predicts):
    weights = weighting.weights(torch.tensor([torch.inf, -torch.inf]), predicts)
    assert torch.isfinite(weights).all() and (weights >= 0).all()


@pytest.mark.parametrize("build", [lambda: MinSNRWeighting(gamma=0), lambda: VelocityWeighting(max_snr=-1)])
def test_a_cap_that_is_not_positive_is_refused(build):
    with pytest.raises(ConfigError, match="must be positive"):
        build()


SIGMAS = 1 / SNR.sqrt()


@pytest.mark.parametrize(
    ("weighting", "in_x0"),
    [
        (SoftMinSNRWeighting(gamma=4.0), 4 * SNR / (SNR + 4)),
        (P2Weighting(k=2.0, gamma=0.5), SNR / (2 + SNR) ** 0.5),
        (SigmoidWeighting(bias=2.0), SNR / (1 + SNR * math.exp(-2.0))),
        (EDMWeighting(), (SIGMAS**2 + 0.25) / (SIGMAS * 0.5) ** 2),
    ],
    ids=repr,
)
def test_weights_in_x0_are_those_of_the_papers(weighting, in_x0):
    assert torch.allclose(weighting.weights(SNR.log(), "x0", 0.5), in_x0)


@pytest.mark.parametrize("predicts", get_args(Prediction))
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_an_error_in_x0_counts_the_same_whatever_is_predicted(predicts, sigma_data):
    alpha, sigma = (SNR / (1 + SNR)).sqrt(), (1 / (1 + SNR)).sqrt()
    a, b = target_weights(predicts, alpha, sigma, sigma_data)
    # At a given x_t an error of 1 in x_0 is one of -alpha / sigma in eps.
    per_x0 = (a - b * alpha / sigma).square()
    for weighting in (MinSNRWeighting(), EDMWeighting(), P2Weighting()):
        found = weighting.weights(SNR.log(), predicts, sigma_data) * per_x0
        assert torch.allclose(found, weighting.weights(SNR.log(), "x0", sigma_data))


def test_what_edm_predicts_counts_the_same_everywhere():
    assert torch.allclose(EDMWeighting().weights(SNR.log(), "edm", 0.5), torch.ones(3, dtype=torch.float64))
