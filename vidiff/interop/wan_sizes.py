"""The published Wan models as plans know them: what they consist of and the clips they were made for."""

from dataclasses import replace

from vidiff.models.autoencoder import VideoVAEConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.shapes import ModelShape
from vidiff.types import Size

UMT5_XXL = 5_681_000_000  # parameters of the text encoder of all of them

_1B = DiTConfig(dim=1536, depth=30, num_heads=12, ffn_dim=8960, mask_text=False)
_5B = DiTConfig(dim=3072, depth=30, num_heads=24, ffn_dim=14336, mask_text=False)
_14B = DiTConfig(dim=5120, depth=40, num_heads=40, ffn_dim=13824, mask_text=False)
_VAE = VideoVAEConfig()
_I2V = replace(_14B, concat_channels=20, image_dim=1280)
_VAE_22 = VideoVAEConfig(latent_channels=48, dim=160, decoder_dim=256, patch_size=2, shortcuts=True)

SMALL, LARGE = Size(81, 480, 832, 16.0), Size(81, 720, 1280, 16.0)
SHAPES = {
    "Wan 2.1 T2V 1.3B": ModelShape((_1B,), 16, 4096, UMT5_XXL, _VAE),
    "Wan 2.1 T2V 14B": ModelShape((_14B,), 16, 4096, UMT5_XXL, _VAE),
    "Wan 2.1 I2V 14B": ModelShape((_I2V,), 16, 4096, UMT5_XXL, _VAE),
    "Wan 2.2 T2V A14B": ModelShape((_14B, _14B), 16, 4096, UMT5_XXL, _VAE),
    "Wan 2.2 TI2V 5B": ModelShape((_5B,), 48, 4096, UMT5_XXL, _VAE_22),
}
SIZES = {
    "Wan 2.1 T2V 1.3B": (SMALL,),
    "Wan 2.1 T2V 14B": (SMALL, LARGE),
    "Wan 2.1 I2V 14B": (SMALL, LARGE),
    "Wan 2.2 T2V A14B": (SMALL, LARGE),
    "Wan 2.2 TI2V 5B": (Size(121, 704, 1280, 24.0),),
}
