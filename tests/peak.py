"""The most memory that tensors took while some code ran, counted storage by storage."""

import weakref
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Peak(TorchDispatchMode):
    """Counts the bytes of every storage that an operator makes while it is alive; `bytes` is the most at once.

    What was there before counts nothing, nor do the workspaces inside of an operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.alive = 0
        self.seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen and storage._cdata not in known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen[key] = size
        self.alive += size
        self.bytes = max(self.bytes, self.alive)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.alive -= self.seen.pop(key)


class CudaRules(TorchFunctionMode):
    """Makes a CPU's norms take the memory that CUDA's do: layer norm float32 under autocast, RMS norm one kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.rms_norm:
            return args[0] * kwargs["weight"]  # of the same size, which is all that counts
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_float32, (args, kwargs))
        return func(*args, **(kwargs or {}))


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
