"""The published Wan models as plans know them: what they consist of and the clips they were made for."""

from vidiff.interop.wan_published import LARGE, PUBLISHED, SMALL, Published
from vidiff.models.autoencoder import VideoVAEConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.shapes import ModelShape

UMT5_XXL = 5_681_000_000  # parameters of the text encoder of all of them

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
    return ModelShape((transformer,) * experts, channels, 4096, UMT5_XXL, _VAE_22 if channels == 48 else _VAE)


SHAPES = {model.name: shape_of(model) for model in PUBLISHED}
# The 1.3B was made for the small size and the 5B for its own, the others for both.
SIZES = {model.name: (SMALL, LARGE) if model.width == 5120 else (model.size,) for model in PUBLISHED}
