"""Published weights, read into a network of ours.

Tensors are read one by one, straight to where they go, so that the host never holds more than one of them beside the
pages of the shard that is being read.
"""

import re
from collections.abc import Callable, Mapping

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vidiff.component_configs import named_in
from vidiff.components import Component, check_finite, check_tensors

# What stays in float32 in a half-precision network: the embedding of time, the tables of modulations and the norms, as
# in the published implementations, and both ends, so that the residual stream is float32.
_EXACT = re.compile(
    r"^(patch_embedding|out)\.|(^|\.)(time_embedding|time_projection|norm\w*|\w+_norm|latent_\w+|preview_\w+)(\.|$)"
    r"|\.table$"
)


def fill(
    module: nn.Module,
    component: Component,
    published: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give a module on the meta device its published weights.

    Args:
        module: whose parameters are replaced.
        component: the weights.
        published: renames a state dict of the module to the published names, in order.
        device: where tensors go, each as soon as it is read; to meta none goes, but all are known to fit.
        dtype: of what half precision does not harm; the rest is float32.

    Raises:
        CheckpointError: if a tensor is missing, left over, misshapen or not finite; it is named as published.
    """
    ours = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(_OWN)}
    with named_in(component.folder):
        theirs = published(ours)
        wanted = dict(zip(theirs, ours, strict=True))
    check_tensors(component, {name: tuple(tensor.shape) for name, tensor in theirs.items()})
    if torch.device(device).type == "meta":
        return
    for path in sorted(set(component.files.values())):
        with safe_open(str(path), framework="pt") as file:
            for name in [name for name in wanted if component.files[name] == path]:
                target = wanted[name]
                exact = _EXACT.search(target) is not None
                tensor = file.get_tensor(name).to(device, torch.float32 if exact else dtype)
                check_finite(path, name, tensor)
                _put(module, target, tensor.reshape(ours[target].shape))
                del tensor  # which may be a view of the shard's pages


# Statistics lie in the published configs, and previews are ours.
_OWN = ("latent_mean", "latent_std", "preview_weight", "preview_bias")


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(owner, leaf, tensor)
