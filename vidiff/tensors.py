"""Small tensor helpers that every other module may use."""

import platform

import torch
from torch import Tensor


def expand_as(values: Tensor, like: Tensor) -> Tensor:
    """Append singleton axes to per-sample ``values`` (B,) so that they broadcast over ``like`` (B, ...).

    Raises:
        ValueError: if ``values`` is not one value a sample; broadcasting it anyway would be silently wrong
            whenever B happens to equal another axis.
    """
    if values.ndim != 1 or values.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"expected one value per sample, got {tuple(values.shape)} for {tuple(like.shape)}")
    return values.reshape(-1, *[1] * (like.ndim - 1))


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 products are no slower than float32 ones on ``device``.

    CPUs without such instructions compute them otherwise: 100 times as slowly, measured on one with AVX2 only, and five
    times on one with AVX-512 of before 2020, for which PyTorch's own answer is that bfloat16 is supported.
    """
    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())  # torch before it: unknown, so no
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
