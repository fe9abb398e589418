"""Tiny transformers, and LoRA files for them in every dialect."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vidiff.interop import wan_transformer
from vidiff.models.dit import DiTConfig, SpaceTimeDiT

DIM, FFN, TEXT, CHANNELS = 24, 40, 10, 4
PARTS = ("to_q", "to_k", "to_v", "to_out.0")
# Modules of the tiny transformer in diffusers: (out, in). The patch embedding is a convolution there.
BLOCK = {f"{attn}.{part}": (DIM, DIM) for attn in ("attn1", "attn2") for part in PARTS} | {
    "ffn.net.0.proj": (FFN, DIM),
    "ffn.net.2": (DIM, FFN),
}
TOP = {
    "condition_embedder.time_proj": (6 * DIM, DIM),
    "condition_embedder.text_embedder.linear_1": (DIM, TEXT),
    "proj_out": (4 * CHANNELS, DIM),
}
MODULES = TOP | {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in BLOCK.items()}
DOWN, UP = "lora_A.weight", "lora_B.weight"
# The original release's names, written out here so that the tables under test do not check themselves.
NATIVE = [
    (r"^condition_embedder\.time_proj\b", "time_projection.1"),
    (r"^condition_embedder\.text_embedder\.linear_1\b", "text_embedding.0"),
    (r"^proj_out\b", "head.head"),
    (r"\.attn1\.to_out\.0\b", ".self_attn.o"),
    (r"\.attn2\.to_out\.0\b", ".cross_attn.o"),
    (r"\.attn1\.to_([qkv])\b", r".self_attn.\1"),
    (r"\.attn2\.to_([qkv])\b", r".cross_attn.\1"),
    (r"\.attn2\.add_([kv])_proj\b", r".cross_attn.\1_img"),
    (r"\.ffn\.net\.0\.proj\b", ".ffn.0"),
    (r"\.ffn\.net\.2\b", ".ffn.2"),
]


def factors(rank: int = 3, seed: int = 0, modules: dict = MODULES) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, i, generator=generator) / i**0.5, torch.randn(o, rank, generator=generator) / 4)
        for name, (o, i) in modules.items()
    }


def native(name: str) -> str:
    for pattern, replacement in NATIVE:
        name = re.sub(pattern, replacement, name)
    return name


def musubi(name: str) -> str:
    return "lora_unet_" + native(name).replace(".", "_")


# What a dialect makes of a module's name, and the ends of its keys of A and B.
DIALECTS = {
    "diffusers": (lambda n: f"transformer.{n}", DOWN, UP),
    "bare": (lambda n: n, DOWN, UP),
    "peft": (lambda n: f"base_model.model.{n}", DOWN, UP),
    "peft_default": (lambda n: f"base_model.model.{n}", "lora_A.default.weight", "lora_B.default.weight"),
    "native": (lambda n: f"diffusion_model.{native(n)}", DOWN, UP),
    "native_down": (lambda n: f"diffusion_model.{native(n)}", "lora_down.weight", "lora_up.weight"),
    "musubi": (musubi, "lora_down.weight", "lora_up.weight"),
    "diffsynth": (native, "lora_A.default.weight", "lora_B.default.weight"),
}
KINDS = dict.fromkeys(DIALECTS, "diffusers") | {
    "native": "native",
    "native_down": "native",
    "musubi": "musubi",
    "diffsynth": "diffsynth",
}


def written(
    path: Path, dialect: str = "diffusers", alpha: float | None = None, header: dict | None = None, **options
) -> Path:
    """Write a LoRA; ``options`` are those of `factors`."""
    spell, down, up = DIALECTS[dialect]
    tensors = {}
    for name, (a, b) in factors(**options).items():
        tensors[f"{spell(name)}.{down}"], tensors[f"{spell(name)}.{up}"] = a, b
        if alpha is not None:
            tensors[f"{spell(name)}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata=header)
    return path


def model(dim: int = DIM, **options) -> SpaceTimeDiT:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = DiTConfig(dim=dim, depth=2, num_heads=2, ffn_dim=FFN, mask_text=False, **options)
        dit = SpaceTimeDiT(config, CHANNELS, TEXT).eval()
        for parameter in dit.parameters():
            nn.init.normal_(parameter, std=0.2)
    return dit


def weight(dit: nn.Module, name: str) -> Tensor:
    return wan_transformer.to_diffusers(dit.state_dict())[f"{name}.weight"]
