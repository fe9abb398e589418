"""Networks: the video autoencoder and the denoising backbones."""
