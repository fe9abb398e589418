"""Transformer blocks that wait in host memory and visit the device one after the other.

The next block is copied by a stream of its own while one computes, into one of 1 + prefetch places on the device that
are made once. Freed memory of a running program would not do: a program runs ahead of its GPU, and would ask for
another block's memory long before the GPU is done with the first.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vidiff.errors import ConfigError

_SMALL = 1 << 20  # bytes of a tensor that may share a page of memory with others

Copy = Callable[[Tensor, Tensor], Any]
"""Copies numbers (first the target, then the source) on the current stream, without waiting for it."""


def offloaded(
    blocks: nn.ModuleList, device: torch.device | str, prefetch: int = 1, copy: Copy | None = None
) -> "Offload":
    """Leave the weights of ``blocks`` on the host and bring each block's to ``device`` when it is called.

    Outputs are those of blocks on the device, bit for bit. For generation alone: no gradient reaches the weights, and
    weights that change meanwhile may go unseen. Blocks may be left out or called in another order, at the cost of
    waiting for them. On a CPU the same happens with copies in the same memory, which saves nothing.

    Args:
        blocks: all of one shape; their weights must lie on the host.
        device: where tokens are when a block is called.
        prefetch: how many of the following blocks are copied meanwhile.
        copy: replaces the copying.

    Returns:
        A handle; its `close` ends it, and must be called before the weights are dropped.

    Raises:
        ConfigError: if the blocks differ in shape, lie elsewhere than on the host, or ``prefetch`` is negative.
    """
    if prefetch < 0:
        raise ConfigError(f"prefetch must be at least 0 blocks, got {prefetch}")
    return Offload(list(blocks), torch.device(device), prefetch, copy or partial(Tensor.copy_, non_blocking=True))


def place_rest(backbone: nn.Module, blocks: nn.ModuleList, device: torch.device | str) -> None:
    """Move all of ``backbone`` but ``blocks``, modules of its own, to ``device``."""
    kept = {id(value) for value in (*blocks.parameters(), *blocks.buffers())}
    for module in backbone.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for values in tables:
            for name, value in values.items():
                if value is not None and id(value) not in kept:
                    moved = value.detach().to(device)
                    is_parameter = isinstance(value, nn.Parameter)
                    values[name] = nn.Parameter(moved, value.requires_grad) if is_parameter else moved


@dataclass
class _Place:
    """Room for one block on the device."""

    values: list[Tensor]  # wrapped as the block's own are
    parts: list[Tensor]  # the plain tensors in them
    block: int | None = None  # whose numbers they hold
    copied: torch.cuda.Event | None = None
    used: torch.cuda.Event | None = None


class Offload:
    """The blocks of `offloaded` at work."""

    def __init__(self, blocks: list[nn.Module], device: torch.device, prefetch: int, copy: Copy):
        self.device, self.prefetch, self.copy = device, prefetch, copy
        self.slots = [_slots(block) for block in blocks]
        self.host = [[values[name] for values, name in slots] for slots in self.slots]
        self.parts = [[part for value in values for part in _plain(value)] for values in self.host]
        self._check()
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.registered: list[Tensor] = []
        if self.stream is not None:
            self.parts = [[self._pinned(part) for part in parts] for parts in self.parts]
        count = min(1 + prefetch, len(blocks))
        self.places = [_room(self.host[0], device) for _ in range(count)]
        self.handles = []
        if self.stream is not None:  # memory of the places may have been another tensor's until now
            self.stream.wait_stream(torch.cuda.current_stream(device))
        for number, block in enumerate(blocks):
            self.handles.append(block.register_forward_pre_hook(partial(self._enter, number)))
            # Also after an error, so that a caught one leaves a whole network behind.
            self.handles.append(block.register_forward_hook(partial(self._leave, number), always_call=True))

    def close(self) -> None:
        """Make the blocks ordinary modules on the host again and free their places on the device."""
        for handle in self.handles:
            handle.remove()
        if self.stream is not None:
            torch.cuda.synchronize(self.device)
        for part in self.registered:
            torch.cuda.cudart().cudaHostUnregister(part.data_ptr())
        self.handles, self.places, self.registered = [], [], []

    def _pinned(self, part: Tensor) -> Tensor:
        pinned, registered = _pinned(part, self.device)
        if registered:
            self.registered.append(pinned)
        return pinned

    def _check(self) -> None:
        shapes = [[(part.shape, part.dtype) for part in parts] for parts in self.parts]
        if any(shape != shapes[0] for shape in shapes):
            raise ConfigError("only blocks of one shape and type can be offloaded; these differ")
        elsewhere = {part.device.type for parts in self.parts for part in parts} - {"cpu"}
        if elsewhere:
            raise ConfigError(f"blocks to offload must lie on the host, some are on {', '.join(sorted(elsewhere))}")

    def _enter(self, number: int, block: nn.Module, args: Any) -> None:
        wanted = range(number, min(number + 1 + self.prefetch, len(self.slots)))
        place = self._brought(number, wanted)
        if place.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(place.copied)
        for (values, name), value in zip(self.slots[number], place.values, strict=True):
            values[name] = value
        for following in wanted[1:]:
            self._brought(following, wanted)

    def _leave(self, number: int, block: nn.Module, args: Any, output: Any) -> None:
        for (values, name), value in zip(self.slots[number], self.host[number], strict=True):
            values[name] = value
        for place in self.places:
            if place.block == number and self.stream is not None:
                place.used = torch.cuda.current_stream(self.device).record_event()

    def _brought(self, number: int, wanted: range) -> _Place:
        """Return where block ``number`` is or will be, in a place that no other of the ``wanted`` has."""
        for place in self.places:
            if place.block == number:
                return place
        place = next(place for place in self.places if place.block not in wanted)
        place.block = number
        if self.stream is None:
            self._copied(place, number)
            return place
        with torch.cuda.stream(self.stream):
            if place.used is not None:  # by a block that may still be computing
                self.stream.wait_event(place.used)
            self._copied(place, number)
            place.copied = self.stream.record_event()
        return place

    @torch.no_grad()
    def _copied(self, place: _Place, number: int) -> None:
        for target, source in zip(place.parts, self.parts[number], strict=True):
            self.copy(target, source)


def _slots(block: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return where a block's weights are kept: dictionaries of its modules, with names in them."""
    tables = [values for module in block.modules() for values in (module._parameters, module._buffers)]
    return [(values, name) for values in tables for name, value in values.items() if value is not None]


def _plain(value: Tensor) -> list[Tensor]:
    """Return the tensors that a quantized weight consists of, or the weight itself."""
    if not is_traceable_wrapper_subclass(value):
        return [value.detach()]
    names = value.__tensor_flatten__()[0]
    return [part for name in names for part in _plain(getattr(value, name))]


def _room(values: list[Tensor], device: torch.device) -> _Place:
    made = [_like(value, device) for value in values]
    return _Place(made, [part for value in made for part in _plain(value)])


def _like(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the same kind and size on ``device``, its numbers not set."""
    if not is_traceable_wrapper_subclass(value):
        made = torch.empty_like(value, device=device, requires_grad=False)
    else:
        names, context = value.__tensor_flatten__()
        parts = {name: _like(getattr(value, name), device) for name in names}
        made = type(value).__tensor_unflatten__(parts, context, value.shape, value.stride())
    return nn.Parameter(made, requires_grad=False) if isinstance(value, nn.Parameter) else made


def _pinned(part: Tensor, device: torch.device) -> tuple[Tensor, bool]:
    """Return a tensor in pinned memory, from where copies run beside the computation, and whether it lies where it was.

    A large one is pinned in its place: torch's allocator rounds up to powers of two, and would take half as much memory
    again for the weights of a 14B model.
    """
    if part.is_pinned() or part.nbytes < _SMALL:
        return part.pin_memory(), False
    if int(torch.cuda.cudart().cudaHostRegister(part.data_ptr(), part.nbytes, 0)) == 0:
        return part, True
    with suppress(RuntimeError):  # CUDA tells of the failure once more at the next kernel
        torch.zeros(1, device=device)
    return part.pin_memory(), False
