import pytest
import torch
from torch import nn

from vidiff.diffusion.denoiser import Denoiser, squared_or_huber
from vidiff.diffusion.guidance import Guidance, guided
from vidiff.diffusion.prediction import target
from vidiff.diffusion.schedule import CosineSchedule, FlowSchedule
from vidiff.diffusion.training_times import LogitNormalTimes, StratifiedTimes, UniformTimes
from vidiff.diffusion.weighting import MinSNRWeighting, SimpleWeighting, VelocityWeighting
from vidiff.errors import ConfigError
from vidiff.tensors import expand_as
from vidiff.types import Conditioning, TextEmbedding


def text(batch, value=0.0, length=3):
    return TextEmbedding(torch.full((batch, length, 4), value), torch.ones(batch, length, dtype=torch.bool))


class Perfect(nn.Module):
    """Knows the data and answers with the exact target."""

    def __init__(self, x_0, schedule, kind):
        super().__init__()
        self.x_0, self.schedule, self.kind = x_0, schedule, kind

    def forward(self, x, t, cond):
        alpha, sigma = (expand_as(v, x) for v in self.schedule.alpha_sigma(t))
        return target(self.kind, self.x_0, (x - alpha * self.x_0) / sigma, alpha, sigma)


class Linear(nn.Module):
    """Mixes x with the mean text, so that conditions matter."""

    def forward(self, x, t, cond):
        said = (cond.text.tokens * cond.text.mask[..., None]).mean((1, 2))
        return 0.5 * x + expand_as(said * (1 + t), x)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("batch", [2, 3, 4, 5])  # equal to every other axis in turn
def test_a_perfect_network_has_no_loss_and_finds_the_data(kind, batch):
    schedule = CosineSchedule(zero_terminal_snr=False)
    x_0, eps = torch.randn(2, batch, 2, 3, 4, 5)
    t = torch.linspace(0.1, 0.9, batch)
    denoiser = Denoiser(Perfect(x_0, schedule, kind), schedule, kind, text_dim=4)
    loss = denoiser.loss(x_0, eps, t, Conditioning(text(batch)))
    assert loss.shape == (batch,) and loss.max() < 1e-6
    alpha, sigma = (expand_as(v, x_0) for v in schedule.alpha_sigma(t))
    assert torch.allclose(denoiser(alpha * x_0 + sigma * eps, t, Conditioning(text(batch))), x_0, atol=1e-4)


def test_one_time_a_sample_is_wanted():
    with pytest.raises(ValueError, match="one value per sample"):
        expand_as(torch.rand(3, 1), torch.rand(3, 2, 2, 2, 2))


def test_the_null_text_is_learned():
    denoiser = Denoiser(Linear(), CosineSchedule(), "v", text_dim=4)
    cond = Conditioning(text(3)).drop_text(torch.tensor([True, False, True]), denoiser.null_text(3))
    denoiser.loss(torch.randn(3, 2, 1, 2, 2), torch.randn(3, 2, 1, 2, 2), torch.rand(3), cond).sum().backward()
    assert denoiser.null_tokens.grad is not None and denoiser.null_tokens.grad.abs().sum() > 0


def test_guidance_of_one_is_the_conditional_model():
    denoiser = Denoiser(Linear(), CosineSchedule(), "v", text_dim=4)
    cond, null = Conditioning(text(2, 1.0)), Conditioning(text(2, 0.0))
    x, t = torch.randn(2, 2, 3, 4, 4), torch.full((2,), 0.5)
    assert torch.equal(guided(denoiser, cond, null, Guidance(scale=1.0))(x, t), denoiser(x, t, cond))


def test_both_branches_in_one_call_equal_two_calls():
    denoiser = Denoiser(Linear(), FlowSchedule(), "flow", text_dim=4)
    cond, null = Conditioning(text(2, 1.0, length=5)), Conditioning(text(2, -1.0, length=2))
    x, t = torch.randn(2, 2, 3, 4, 4), torch.tensor([0.3, 0.3])
    away, towards = denoiser(x, t, null.with_text(null.text.padded(5))), denoiser(x, t, cond)
    assert torch.allclose(
        guided(denoiser, cond, null, Guidance(scale=3.0))(x, t), away + 3 * (towards - away), atol=1e-5
    )


def test_full_rescale_restores_the_conditional_deviation():
    denoiser = Denoiser(Linear(), CosineSchedule(), "v", text_dim=4)
    cond, null = Conditioning(text(2, 2.0)), Conditioning(text(2, -2.0))
    x, t = torch.randn(2, 2, 3, 4, 4), torch.full((2,), 0.6)
    rescaled = guided(denoiser, cond, null, Guidance(scale=7.0, rescale=1.0))(x, t)
    assert torch.allclose(rescaled.flatten(1).std(1), denoiser(x, t, cond).flatten(1).std(1), rtol=1e-4)


def test_guidance_rests_outside_its_interval():
    denoiser = Denoiser(Linear(), CosineSchedule(), "v", text_dim=4)
    cond, null = Conditioning(text(2, 2.0)), Conditioning(text(2, -2.0))
    x = torch.randn(2, 2, 3, 4, 4)
    denoise = guided(denoiser, cond, null, Guidance(scale=7.0, t_min=0.2, t_max=0.8))
    for t, guides in ((0.1, False), (0.5, True), (0.9, False)):
        time = torch.full((2,), t)
        assert torch.equal(denoise(x, time), denoiser(x, time, cond)) != guides


@pytest.mark.parametrize("bad", [{"rescale": 1.5}, {"t_min": 0.9, "t_max": 0.1}])
def test_impossible_guidance_is_refused(bad):
    with pytest.raises(ConfigError):
        Guidance(**bad)


def test_stratified_times_hit_every_part_once():
    t = StratifiedTimes().draw(64, torch.Generator().manual_seed(0), CosineSchedule())
    assert sorted((t * 64).floor().int().tolist()) == list(range(64))
    assert t.tolist() != sorted(t.tolist())


@pytest.mark.parametrize("times", [UniformTimes(), StratifiedTimes()])
def test_uniform_times_have_uniform_moments(times):
    t = times.draw(20_000, torch.Generator().manual_seed(0), CosineSchedule())
    assert t.min() >= 0 and t.max() < 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.01) and t.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_logit_normal_times_have_the_logits_they_say():
    t = LogitNormalTimes(mean=1.0, std=0.5).draw(20_000, torch.Generator().manual_seed(0), CosineSchedule())
    assert t.logit().mean().item() == pytest.approx(1.0, abs=0.02)
    assert t.logit().std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("weighting", [MinSNRWeighting(gamma=5.0), VelocityWeighting(max_snr=50.0)])
def test_a_weighting_means_the_same_for_every_prediction(weighting):
    schedule, t = CosineSchedule(zero_terminal_snr=False), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    snr = alpha**2 / sigma**2
    x_0, guess, eps = torch.randn(3, 9, dtype=torch.float64)
    x_t = alpha * x_0 + sigma * eps
    losses = []
    for kind in ("eps", "x0", "v", "flow"):
        wanted = target(kind, x_0, eps, alpha, sigma)
        output = target(kind, guess, (x_t - alpha * guess) / sigma, alpha, sigma)
        losses.append(weighting.weights(snr.log(), kind) * (output - wanted) ** 2)
    assert all(torch.allclose(loss, losses[1]) for loss in losses)


def test_min_snr_weights_data_error_by_the_capped_snr():
    weights = MinSNRWeighting(gamma=5.0).weights(torch.tensor([0.5, 2.0, 100.0]).log(), "x0")
    assert weights.tolist() == pytest.approx([0.5, 2.0, 5.0], rel=1e-4)
    assert SimpleWeighting().weights(torch.tensor([0.5, 100.0]).log(), "v").tolist() == [1, 1]


class Recorder(nn.Module):
    """Keeps the types it is called with; its matrix product is what autocast changes."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(2, 2)

    def forward(self, x, t, cond):
        self.called_with, self.time = (x.dtype, t.dtype), t
        mixed = self.mix(x.movedim(1, -1))
        self.product = mixed.dtype
        return mixed.movedim(-1, 1)


@pytest.mark.parametrize("precise", [False, True])
def test_only_the_backbone_runs_in_the_precision_the_caller_chose(precise):
    backbone = Recorder()
    denoiser = Denoiser(backbone, CosineSchedule(), "v", text_dim=4)
    x, t, cond = torch.randn(2, 2, 1, 3, 3), torch.tensor([0.0, 1.0], dtype=torch.float64), Conditioning(text(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
        estimate, loss = denoiser(x, t, cond), denoiser.loss(x, torch.randn_like(x), t.float(), cond)
    assert backbone.called_with == (torch.float32, torch.float32) and backbone.time.tolist() == [0, 1]
    assert backbone.product == (torch.float32 if precise else torch.bfloat16)
    assert estimate.dtype == loss.dtype == torch.float32 and torch.isfinite(estimate).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_loss_is_computed_in_float32_whatever_the_latents_are(dtype):
    denoiser = Denoiser(Linear(), CosineSchedule(), "v", text_dim=4)
    x_0, eps = torch.randn(2, 3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    t, cond = torch.tensor([0.2, 0.5, 1.0]), Conditioning(text(3, 1.0))
    loss = denoiser.loss(x_0, eps, t, cond)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, denoiser.loss(x_0.float(), eps.float(), t, cond))


def test_the_huber_loss_is_squared_for_small_errors_and_linear_for_large_ones():
    small, large = torch.tensor([[1e-3], [100.0]], dtype=torch.float64)
    assert squared_or_huber(small[None], 1.0).item() == pytest.approx(1e-6, rel=1e-4)
    assert squared_or_huber(large[None], 1.0).item() == pytest.approx(2 * 100, rel=0.02)
    assert squared_or_huber(large[None], None).item() == 100**2
