"""What can be wrong with a published model's folder: each changes a copy in place."""

import json

import torch
from safetensors.torch import load_file, save_file


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_of(copy, change):
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def drop(weights):
    del weights["blocks.1.attn2.to_k.weight"]


def add(weights):
    weights["blocks.1.extra.weight"] = torch.zeros(2)


def widen(weights):
    weights["proj_out.bias"] = torch.zeros(17)


def spoil(weights):
    weights["proj_out.bias"][3] = torch.nan


def pickled(copy):
    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
