"""Perceptual distance in the features of a VGG-16 whose weights the user brings."""

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidiff.checkpoint import load_weights

# Convolutions before each pooling of VGG-16 (Simonyan & Zisserman, 2015), with torchvision's layer numbers.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
DIMS = (64, 128, 256, 512, 512)


class PerceptualDistance(nn.Module):
    """Mean squared distance of unit-length features after each stage, unweighted (Zhang et al., 2018, equation 1)."""

    def __init__(self, weights: Path):
        """Read ``weights``, a safetensors file with torchvision's names ``features.N.weight`` and ``features.N.bias``.

        Raises:
            CheckpointError: if the file is damaged or does not hold just these tensors.
        """
        super().__init__()
        self.features = nn.ModuleDict()
        dim_in = 3
        for layers, dim in zip(STAGES, DIMS, strict=True):
            for layer in layers:
                self.features[str(layer)] = nn.Conv2d(dim_in, dim, 3, padding=1)
                dim_in = dim
        load_weights(self, weights)
        self.requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        # Statistics of ImageNet, for pixels in [0, 1].
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of two clips (B, 3, F, H, W) in [-1, 1], averaged over frames."""
        x = torch.cat([rearrange(v, "b c f h w -> (b f) c h w") for v in (a, b)])
        x = ((x + 1) / 2 - self.mean) / self.std
        total = x.new_zeros(())
        for number, layers in enumerate(STAGES):
            if number:
                if min(x.shape[-2:]) < 2:
                    break
                x = F.max_pool2d(x, 2)
            for layer in layers:
                x = F.relu(self.features[str(layer)](x))
            left, right = F.normalize(x, dim=1).chunk(2)
            total = total + (left - right).square().sum(1).mean()
        return total
