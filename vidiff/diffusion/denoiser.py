"""The denoiser: a network together with what its input and output mean."""

import torch
from torch import Tensor, nn

from vidiff.diffusion import prediction
from vidiff.diffusion.prediction import Prediction
from vidiff.diffusion.schedule import EDMSchedule, NoiseSchedule
from vidiff.tensors import expand_as
from vidiff.types import Conditioning, TextEmbedding

_NOISE_RANGE = 1e-3, 1e3  # of sigma / alpha, whose logarithm a network that predicts edm is told


class Denoiser(nn.Module):
    """Estimates x_0 from x_t. Samplers and guidance see this, never the raw network."""

    def __init__(
        self,
        backbone: nn.Module,
        schedule: NoiseSchedule,
        predicts: Prediction,
        text_dim: int,
        null_tokens: int = 1,
        sigma_data: float = 1.0,
        learned_variance: bool = False,
    ):
        """Put a network and its meaning together.

        Args:
            backbone: the network; with ``learned_variance`` one of 2 C channels, which finds zeros in the second half
                of its input and says there how the variance lies between its bounds.
            schedule: how x_t was noised.
            predicts: what the network says.
            text_dim: width of a text token's state.
            null_tokens: how many learned ones stand for no text.
            sigma_data: deviation of the data, for ``predicts`` edm.
            learned_variance: whether `with_variance` may be asked.
        """
        super().__init__()
        prediction.check_prediction(predicts, schedule)
        self.backbone, self.schedule, self.predicts = backbone, schedule, predicts
        self.sigma_data, self.learned_variance = sigma_data, learned_variance
        self.null_tokens = nn.Parameter(0.02 * torch.randn(null_tokens, text_dim))

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, told_steps: int = 0) -> Tensor:
        """Estimate the clean latents.

        Args:
            x_t: noisy latents, (B, C, f, h, w).
            t: time in [0, 1] of each sample, (B,); float64 keeps sampling exact.
            cond: conditioning of the same B samples; where latents are ``known``, they are the estimate.
            told_steps: the network is told t rounded down to whole steps of which 1 has this many; 0: exactly.

        Returns:
            Estimate of x_0, (B, C, f, h, w), float32.
        """
        return self.with_variance(x_t, t, cond, told_steps)[0]

    def with_variance(self, x_t: Tensor, t: Tensor, cond: Conditioning, told_steps: int = 0) -> tuple[Tensor, Tensor]:
        """Return the estimate of x_0 and where between its bounds the log-variance lies; see `diffusion.variance`.

        Both are (B, C, f, h, w), float32; the second is in [0, 1] if the network has learned it, and empty (B, 0, f, h,
        w) if not. Arguments are those of `forward`.
        """
        # Near t = 1 the difference of alpha from 0 is lost in float32, so the map to x_0 is computed in t's dtype.
        alpha, sigma = (expand_as(v, x_t) for v in self.schedule.alpha_sigma(t))
        told = (t * told_steps).floor() / told_steps if told_steps else t
        output, share = self._said(_with_known(x_t.float(), cond), told, cond)
        x_0 = prediction.to_x0(
            self.predicts, output.to(alpha.dtype), x_t.to(alpha.dtype), alpha, sigma, self.sigma_data
        )
        return _with_known(x_0.float(), cond), share

    def loss(
        self,
        x_0: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Conditioning,
        huber: float | None = None,
        *,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Return the mean squared error of the network's own target for each sample, (B,), float32.

        Args:
            x_0: clean latents, (B, C, f, h, w); half-precision ones are noised in float32 all the same.
            eps: standard normal noise of x_0's shape.
            t: time in [0, 1] of each sample, (B,).
            cond: conditioning of the same B samples.
            huber: see `squared_or_huber`.
            seen: what lies under the noise in place of ``x_0``, of its shape, for a network that predicts ``x_0``.
        """
        x_0, eps = x_0.float(), eps.float()
        alpha, sigma = (expand_as(v.float(), x_0) for v in self.schedule.alpha_sigma(t))
        output, _ = self._said(alpha * (x_0 if seen is None else seen) + sigma * eps, t, cond)
        wanted = prediction.target(self.predicts, x_0, eps, alpha, sigma, self.sigma_data)
        return squared_or_huber(output.float() - wanted, huber)

    def null_text(self, batch: int) -> TextEmbedding:
        """Return the learned stand-in for no prompt, for ``batch`` samples."""
        tokens = self.null_tokens.expand(batch, -1, -1)
        return TextEmbedding(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def _said(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Return the network's output and the share of the log-variance for float32 ``x_t``."""
        told = t.float()
        if self.predicts == "edm" or isinstance(self.schedule, EDMSchedule):
            # Inputs of unit variance, whatever the noise (Karras et al., 2022, equation 8: c_in).
            alpha, sigma = self.schedule.alpha_sigma(t)
            x_t = x_t / expand_as(torch.hypot(alpha * self.sigma_data, sigma).float(), x_t)
            if self.predicts == "edm":
                told = (sigma / alpha).clamp(*_NOISE_RANGE).log().float() / 4  # c_noise
        if not self.learned_variance:
            return self.backbone(x_t, told, cond), x_t[:, :0]
        both = self.backbone(torch.cat([x_t, torch.zeros_like(x_t)], dim=1), told, cond)
        output, share = both.chunk(2, dim=1)
        return output, (share.float() + 1) / 2


def _with_known(latents: Tensor, cond: Conditioning) -> Tensor:
    if cond.known is None:
        return latents
    return torch.cat([cond.known.to(latents), latents[:, :, cond.known.shape[2] :]], dim=2)


def squared_or_huber(differences: Tensor, huber: float | None) -> Tensor:
    """Return the mean loss of each sample, (B,), of ``differences`` (B, ...).

    It is the squared error d^2, or with ``huber`` as c the pseudo-Huber loss 2 c (sqrt(d^2 + c^2) - c), which equals it
    where d is small beside c and grows like 2 c d where it is not (Charbonnier et al., 1997).
    """
    errors = differences.square()
    if huber is not None:
        errors = 2 * huber * ((errors + huber**2).sqrt() - huber)
    return errors.flatten(1).mean(1)
