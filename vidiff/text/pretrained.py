"""Encoders that are networks of transformers, with the same checks of their weights as networks of ours have."""

import copy
import re
from pathlib import Path
from typing import Any

import torch

from vidiff.component_configs import named_in
from vidiff.components import check_finite, check_tensors, open_component
from vidiff.errors import CheckpointError

WHOLE = "model.safetensors"  # what transformers reads if it is there, whatever lies beside it
# One tensor under two names, of which published files hold either or both.
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}


def load_pretrained(cls: Any, folder: Path, prefix: str, beside: str, **arguments: Any) -> Any:
    """Return the network of a folder; its weights are read once, and not before they are known to fit.

    Args:
        cls: its class in transformers.
        folder: of ``config.json`` and safetensors files.
        prefix: before all names of tensors in some files.
        beside: a pattern of the names of tensors that other networks read, such as the decoder beside an encoder.
        **arguments: of ``from_pretrained``.

    Raises:
        CheckpointError: if the config is damaged, or a tensor is missing, left over, misshapen or not finite; it is
            named as published.
    """
    component = open_component(folder, WHOLE)
    with named_in(folder):
        config = cls.config_class.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            network = cls(copy.deepcopy(config))  # which the class may change
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    prefixed = prefix != "" and any(name.startswith(prefix) for name in component.shapes)

    def published(name: str) -> str:
        return _meant(prefix * prefixed + name.removeprefix(prefix))

    wanted = {published(name): shape for name, shape in shapes.items()}
    check_tensors(component, wanted, re.compile(beside), _meant)
    with named_in(folder, f"cannot be read as {cls.__name__}"):
        model, report = cls.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **arguments,
        )
    if lost := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder}: weights do not fit {cls.__name__}: missing {', '.join(lost[:3])}")
    for name, tensor in model.named_parameters():
        check_finite(component.files.get(published(name), folder), published(name), tensor)
    return model


def _meant(name: str) -> str:
    """Return what transformers knows a tensor of a file by; norms have other names in the oldest files."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return _TIED.get(name, name)
