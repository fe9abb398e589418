import pytest
import torch

from vidiff.diffusion.weighting import MinSNRWeighting, VelocityWeighting
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


@pytest.mark.parametrize("weighting", [MinSNRWeighting(), VelocityWeighting()])
@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
def test_weights_are_finite_at_pure_data_and_pure_noise(weighting, predicts):
    weights = weighting.weights(torch.tensor([torch.inf, -torch.inf]), predicts)
    assert torch.isfinite(weights).all() and (weights >= 0).all()


@pytest.mark.parametrize("build", [lambda: MinSNRWeighting(gamma=0), lambda: VelocityWeighting(max_snr=-1)])
def test_a_cap_that_is_not_positive_is_refused(build):
    with pytest.raises(ConfigError, match="must be positive"):
        build()
