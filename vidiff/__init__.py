"""Text-to-video latent diffusion: a video VAE, a space-time DiT, and the tools to train and run them."""

from pathlib import Path

__version__ = "0.1.0"

# A wheel holds cli/, configs/ and recipes/ inside this package; in a checkout they lie beside it.
if not (Path(__file__).parent / "cli").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))
