"""Tiny models saved by the reference library in the layout that published ones have, and what both make of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidiff.diffusion.guidance import Guidance
from vidiff.pipeline import Pipeline
from vidiff.types import Size

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference")
transformers = pytest.importorskip("transformers", reason="transformers holds the text encoder")

WORDS = ["a", "the", "red", "blue", "ball", "cat", "walks", "rolls", "right", "left", "on", "grass"]
TRANSFORMER: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, ffn_dim=40, num_layers=2
)
# Of Wan 2.2: pixels folded two by two, and shortcuts around the levels.
NEWER_VAE: dict[str, Any] = dict(
    is_residual=True, patch_size=2, in_channels=12, out_channels=12, decoder_base_dim=6, scale_factor_spatial=16
)
STATISTICS: dict[str, Any] = dict(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.1, 2.0])
SIZE = Size(9, 32, 48, 16.0)
WIDE = Size(9, 32, 64, 16.0)  # whose sides tokens of the newer VAE's latents divide
PROMPT, NEGATIVE = "a red ball rolls right", "a blue cat"


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def stirred(model: torch.nn.Module, spread: float = 0.2) -> Any:
    """Return ``model`` with weights that no part of it can hide behind."""
    for name, parameter in model.named_parameters():
        centered = parameter.ndim > 1 or name.endswith("bias") or "table" in name
        torch.nn.init.normal_(parameter, 0.0 if centered else 1.0, spread)
    return model.eval()


def transformer(**changes: Any) -> Any:
    return stirred(diffusers.WanTransformer3DModel(**TRANSFORMER | changes))


def vae(**changes: Any) -> Any:
    settings = dict(base_dim=4, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1) | STATISTICS | changes
    return diffusers.AutoencoderKLWan(**settings).eval()


def text_encoder() -> Any:
    config = transformers.UMT5Config(
        vocab_size=len(WORDS) + 3, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return transformers.UMT5EncoderModel(config).eval()


def scheduler(shift: float = 3.0) -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def text_to_video(folder: Path, experts: bool = False, newer: bool = False) -> Any:
    """Save a text-to-video pipeline and return it.

    Args:
        folder: where it goes.
        experts: give it two, as Wan 2.2 T2V A14B.
        newer: give it the newer VAE and a time for each token, as Wan 2.2 TI2V 5B.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = diffusers.WanPipeline(
            tokenizer=tokenizer(),
            text_encoder=text_encoder(),
            vae=vae(**NEWER_VAE) if newer else vae(),
            scheduler=scheduler(),
            transformer=transformer(),
            transformer_2=transformer() if experts else None,
            boundary_ratio=0.875 if experts else None,
            expand_timesteps=newer,
        )
    made.save_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def image_encoder() -> Any:
    config = transformers.CLIPVisionConfig(
        hidden_size=14, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    return transformers.CLIPVisionModel(config).eval()


def image_processor() -> Any:
    from transformers.models.clip import image_processing_pil_clip as clip

    return clip.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def image_to_video(folder: Path, kind: str) -> Any:
    """Save a pipeline and return it as an image-to-video one.

    Args:
        folder: where it goes.
        kind: ``clip`` as Wan 2.1 I2V, ``concat`` with two experts as Wan 2.2 I2V, ``newer`` as Wan 2.2 TI2V, which
            is saved as a text-to-video pipeline, or ``known``: the same with the older VAE, and saved as it is.
    """
    if kind == "newer":
        text_to_video(folder, newer=True)
        made = diffusers.WanImageToVideoPipeline.from_pretrained(folder)
        made.set_progress_bar_config(disable=True)
        return made
    changes: dict[str, Any] = {} if kind == "known" else {"in_channels": 12}
    if kind == "clip":
        changes |= {"image_dim": 14, "added_kv_proj_dim": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = diffusers.WanImageToVideoPipeline(
            tokenizer=tokenizer(),
            text_encoder=text_encoder(),
            vae=vae(),
            scheduler=scheduler(),
            transformer=transformer(**changes),
            transformer_2=transformer(**changes) if kind == "concat" else None,
            image_encoder=image_encoder() if kind == "clip" else None,
            image_processor=image_processor() if kind == "clip" else None,
            boundary_ratio=0.9 if kind == "concat" else None,
            expand_timesteps=kind == "known",
        )
    made.save_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def noise(size: Size = SIZE, stride: int = 8) -> Tensor:
    frames = (size.frames - 1) // 4 + 1
    shape = (1, 4, frames, size.height // stride, size.width // stride)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def reference(pipeline: Any, output_type: str = "latent", steps: int = 4, size: Size = SIZE, **kwargs: Any) -> Any:
    with torch.no_grad():
        return pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            height=size.height,
            width=size.width,
            num_frames=size.frames,
            num_inference_steps=steps,
            output_type=output_type,
            max_sequence_length=512,
            **kwargs,
        ).frames


def ours(
    pipeline: Pipeline, scale: float | str, steps: int = 4, own: Any = None, size: Size = SIZE, **kwargs: Any
) -> Tensor:
    sampling = replace(own or pipeline.config.sampling, num_steps=steps, guidance=Guidance(scale=scale))
    return pipeline.sample([PROMPT], [0], size, sampling, negatives=[NEGATIVE], **kwargs)


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()
