"""Tiny models saved by the reference library in the layout that published ones have."""

from pathlib import Path
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference")
transformers = pytest.importorskip("transformers", reason="transformers holds the text encoder")

WORDS = ["a", "the", "red", "blue", "ball", "cat", "walks", "rolls", "right", "left", "on", "grass"]
TRANSFORMER: dict[str, Any] = dict(
    num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, ffn_dim=40, num_layers=2
)
STATISTICS: dict[str, Any] = dict(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 1.1, 2.0])


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


def text_to_video(folder: Path, experts: bool = False, **changes: Any) -> Any:
    """Save a text-to-video pipeline, with two experts where that is asked for, and return it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = diffusers.WanPipeline(
            tokenizer=tokenizer(),
            text_encoder=text_encoder(),
            vae=vae(),
            scheduler=scheduler(),
            transformer=transformer(),
            transformer_2=transformer() if experts else None,
            boundary_ratio=0.875 if experts else None,
            **changes,
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
    """Save an image-to-video pipeline: ``clip`` as Wan 2.1, ``concat`` with two experts or ``known`` as Wan 2.2."""
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
