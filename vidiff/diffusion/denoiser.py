"""The denoiser: a network together with what its input and output mean."""

import torch
from torch import Tensor, nn

from vidiff.diffusion import prediction
from vidiff.diffusion.prediction import Prediction
from vidiff.diffusion.schedule import NoiseSchedule
from vidiff.tensors import expand_as
from vidiff.types import Conditioning, TextEmbedding


class Denoiser(nn.Module):
    """Estimates x_0 from x_t. Samplers and guidance see this, never the raw network."""

    def __init__(
        self,
        backbone: nn.Module,
        schedule: NoiseSchedule,
        predicts: Prediction,
        text_dim: int,
        null_tokens: int = 1,
    ):
        super().__init__()
        prediction.check_prediction(predicts, schedule)
        self.backbone, self.schedule, self.predicts = backbone, schedule, predicts
        self.null_tokens = nn.Parameter(0.02 * torch.randn(null_tokens, text_dim))

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Estimate the clean latents.

        Args:
            x_t: noisy latents, (B, C, f, h, w).
            t: time in [0, 1] of each sample, (B,); float64 keeps sampling exact.
            cond: conditioning of the same B samples.

        Returns:
            Estimate of x_0, (B, C, f, h, w), float32.
        """
        # Near t = 1 the difference of alpha from 0 is lost in float32, so the map to x_0 is computed in t's dtype.
        alpha, sigma = (expand_as(v, x_t) for v in self.schedule.alpha_sigma(t))
        output = self.backbone(x_t.float(), t.float(), cond)
        return prediction.to_x0(self.predicts, output.to(alpha.dtype), x_t.to(alpha.dtype), alpha, sigma).float()

    def loss(self, x_0: Tensor, eps: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the mean squared error of the network's own target for each sample, (B,), float32.

        Args:
            x_0: clean latents, (B, C, f, h, w); half-precision ones are noised in float32 all the same.
            eps: standard normal noise of x_0's shape.
            t: time in [0, 1] of each sample, (B,).
            cond: conditioning of the same B samples.
        """
        x_0, eps = x_0.float(), eps.float()
        alpha, sigma = (expand_as(v.float(), x_0) for v in self.schedule.alpha_sigma(t))
        output = self.backbone(alpha * x_0 + sigma * eps, t.float(), cond).float()
        wanted = prediction.target(self.predicts, x_0, eps, alpha, sigma)
        return (output - wanted).square().flatten(1).mean(1)

    def null_text(self, batch: int) -> TextEmbedding:
        """Return the learned stand-in for no prompt, for ``batch`` samples."""
        tokens = self.null_tokens.expand(batch, -1, -1)
        return TextEmbedding(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
