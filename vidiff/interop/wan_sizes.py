"""The published Wan models as plans know them: what they consist of and the clips they were made for."""

from vidiff.interop.wan_published import LARGE, PUBLISHED, SMALL, Published
from vidiff.models.autoencoder import VideoVAEConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.shapes import ModelShape

UMT5_XXL = 5_681_000_000  # parameters of the text encoder of all of them
CLIP_H = 630_766_080  # of the image encoder of Wan 2.1 I2V, the vision tower of CLIP ViT-H/14 (Radford et al., 2021)
CLIP_H_STATES = 1 + (224 // 14) ** 2

_VAE = VideoVAEConfig()
_VAE_22 = VideoVAEConfig(latent_channels=48, dim=160, decoder_dim=256, patch_size=2, shortcuts=True)
_MASK_CHANNELS = 4  # of what image-to-video transformers see beside a picture's latents


def shape_of(model: Published) -> ModelShape:
    """Return what ``model`` consists of."""
    channels = model.latent_channels
    transformer = DiTConfig(
        dim=model.width,
        depth=model.depth,
        num_heads=model.width // 128,
        ffn_dim=model.ffn_dim,
        mask_text=False,
        concat_channels=channels + _MASK_CHANNELS if model.pictures == "concat" else 0,
        image_dim=model.image_dim,
    )
    experts = 1 if model.boundary is None else 2
    return ModelShape(
        *((transformer,) * experts, channels, 4096, UMT5_XXL, _VAE_22 if channels == 48 else _VAE),
        image_parameters=0 if model.image_dim is None else CLIP_H,
        image_length=0 if model.image_dim is None else CLIP_H_STATES,
    )


SHAPES = {model.name: shape_of(model) for model in PUBLISHED}
# The 1.3B was made for the small size and the 5B for its own, the others for both.
SIZES = {model.name: (SMALL, LARGE) if model.width == 5120 else (model.size,) for model in PUBLISHED}
