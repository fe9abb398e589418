"""How the published Wan models are sampled, from the configs of their own release (Wan Team, 2025)."""

from dataclasses import dataclass

from vidiff.models.dit import DiTConfig
from vidiff.types import Size

_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
MANY_PIXELS = 600_000  # pixels a frame; the published sizes are 832x480, which is below, and 1280x720 or 1280x704


@dataclass(frozen=True)
class Published:
    """One model and the setting that it was published with."""

    name: str
    hub: str  # where the diffusers layout of it lies
    width: int  # of the transformer
    depth: int
    latent_channels: int
    size: Size
    num_steps: int
    guidance: float | str
    shift: float
    pictures: str = "none"  # as in ModelConfig
    boundary: float | None = None  # time at which the expert for much noise ends
    large_shift: float | None = None  # for frames of MANY_PIXELS or more
    image_dim: int | None = None
    negative: str = _NEGATIVE
    ffn_dim: int = 13824
    params: float = 0.0  # of the transformer, in 10^9; of one expert


SMALL, LARGE = Size(81, 480, 832, 16.0), Size(81, 720, 1280, 16.0)

PUBLISHED = (
    Published(
        name="Wan 2.1 T2V 1.3B", hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", width=1536, depth=30, latent_channels=16,
        size=SMALL, num_steps=50, guidance=5.0, shift=5.0, ffn_dim=8960, params=1.419,
    ),
    Published(
        name="Wan 2.1 T2V 14B", hub="Wan-AI/Wan2.1-T2V-14B-Diffusers", width=5120, depth=40, latent_channels=16,
        size=LARGE, num_steps=50, guidance=5.0, shift=5.0, params=14.288,
    ),
    Published(
        name="Wan 2.1 I2V 14B", hub="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", width=5120, depth=40, latent_channels=16,
        size=SMALL, num_steps=40, guidance=5.0, shift=3.0, large_shift=5.0, pictures="concat", image_dim=1280,
        negative=f"镜头晃动，{_NEGATIVE}", params=16.395,
    ),
    Published(
        name="Wan 2.1 I2V 14B 720P", hub="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", width=5120, depth=40,
        latent_channels=16, size=LARGE, num_steps=40, guidance=5.0, shift=5.0, pictures="concat", image_dim=1280,
        negative=f"镜头晃动，{_NEGATIVE}", params=16.395,
    ),
    Published(
        name="Wan 2.2 T2V A14B", hub="Wan-AI/Wan2.2-T2V-A14B-Diffusers", width=5120, depth=40, latent_channels=16,
        size=LARGE, num_steps=40, guidance="4@0.875:1,3", shift=12.0, boundary=0.875, params=14.288,
    ),
    Published(
        name="Wan 2.2 I2V A14B", hub="Wan-AI/Wan2.2-I2V-A14B-Diffusers", width=5120, depth=40, latent_channels=16,
        size=LARGE, num_steps=40, guidance=3.5, shift=5.0, boundary=0.9, pictures="concat", params=14.289,
    ),
    Published(
        name="Wan 2.2 TI2V 5B", hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers", width=3072, depth=30, latent_channels=48,
        size=Size(121, 704, 1280, 24.0), num_steps=50, guidance=5.0, shift=5.0, pictures="known", ffn_dim=14336,
        params=5.0,
    ),
)  # fmt: skip


def published(config: DiTConfig, latent_channels: int, boundary: float | None, place: str = "") -> Published | None:
    """Return the published model of this shape, or None for any other.

    Of two that differ in their settings only, it is the one whose hub id is in ``place``, or the first.
    """
    wanted = (config.dim, config.depth, latent_channels, boundary, config.image_dim, config.concat_channels > 0)
    found = [
        one
        for one in PUBLISHED
        if (one.width, one.depth, one.latent_channels, one.boundary, one.image_dim, one.pictures == "concat") == wanted
    ]
    named = [one for one in found if one.hub.partition("/")[2] in place]
    return next(iter(named or found), None)
