"""What can be wrong with a published model's folder: each changes a copy in place."""

import json

import torch
from safetensors.torch import load_file, save_file


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights_of(copy, change, part="transformer"):
    (path,) = (copy / part).glob("*.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


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


def widened(name):
    def change(weights):
        weights[_full(weights, name)] = torch.zeros(3, *weights[_full(weights, name)].shape)

    return change


def spoiled(name, value=torch.nan):
    def change(weights):
        weights[_full(weights, name)].view(-1)[-1] = value

    return change


def dropped(name):
    return lambda weights: weights.pop(_full(weights, name))


def added(name, *shape):
    return lambda weights: weights.update({name: torch.zeros(shape)})


def _full(weights, name):
    """Return the name with the prefix that some versions of transformers write before it."""
    return next(full for full in weights if full.endswith(name))
