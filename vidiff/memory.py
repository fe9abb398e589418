"""Plans for large models: what lies where while a clip is made, and how much memory that takes.

Each phase (the text is encoded, and a picture where a model needs one; latents are denoised, frames are decoded) has
several ways, fastest first, and a plan takes the first of each that fits. Bytes of activations are counted, see
`vidiff.models.activations`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from vidiff.decoding import TILE, WHOLE, Decode
from vidiff.errors import ConfigError
from vidiff.models import quantize
from vidiff.models.activations import Pass, dit_bytes
from vidiff.models.decoder_activations import decode_bytes
from vidiff.models.encoder_activations import encode_bytes
from vidiff.models.shapes import ModelShape, WeightCount, autoencoder_weights, transformer_weights
from vidiff.types import LatentSpec, Size

GIB = 1 << 30
PREFETCH = 1  # blocks that are copied to the device ahead of their turn
_CONTEXT = GIB // 2  # CUDA's own and the kernels' workspaces
_SPARE = 1.03  # what an allocator loses between tensors of different sizes
_LATENT_COPIES = 10  # of the latents, float32: a solver's last estimates, guidance's and a step's in float64
_TEXT_ACTIVATIONS = GIB // 2  # of UMT5-XXL for two prompts of 512 tokens, mostly its heads' scores; not counted exactly
_COMPUTED, _COPIED = 1e14, 2e10  # floating-point operations and bytes from the host, a second; their ratio decides

Budget = Literal["auto", "low"] | float
Where = Literal["device", "host", "streamed", "freed"]
Text = Literal["beside", "device", "host"]
Kind = Literal["resident", "swapped", "streamed"]
Weights = Literal["full", quantize.Bytes]
WEIGHTS: tuple[Weights, ...] = ("full", "int8", "fp8")
_Way = TypeVar("_Way", bound=tuple[Any, tuple["Phase", ...]])


@dataclass(frozen=True)
class Row:
    """One part of the model."""

    what: str
    where: Where  # streamed: on the host, and layer by layer on the device; freed: on the device until it is done
    dtype: str
    bytes: int  # all of it, wherever


@dataclass(frozen=True)
class Phase:
    """One phase and what it puts on the device."""

    name: Literal["encode text", "encode pictures", "read weights", "denoise", "decode"]
    parts: tuple[tuple[str, int], ...]  # names and bytes

    @property
    def bytes(self) -> int:
        """Return the predicted peak of all tensors on the device."""
        return sum(size for _, size in self.parts)

    @property
    def needed(self) -> int:
        """Return the bytes that the device should have for it: the peak, workspaces and what an allocator loses."""
        return int(self.bytes * _SPARE) + _CONTEXT


@dataclass(frozen=True)
class Strategy:
    """How a model runs."""

    text: Text  # beside: on the device with what the transformer has there; device: there without it
    transformer: Kind  # swapped: experts take turns on the device
    weights: Weights  # of the transformer's blocks: in the products' type, or by `quantize.byte_weights`
    decode: Decode
    parked: bool  # whether the transformer leaves the device before frames are decoded


@dataclass(frozen=True)
class MemoryPlan:
    """What `plan` returns."""

    strategy: Strategy
    rows: tuple[Row, ...]
    phases: tuple[Phase, ...]
    host: int  # bytes of weights in host memory, at the most
    budget: int | None  # bytes; None is as little as possible

    @property
    def needed(self) -> int:
        """Return the bytes that the device should have."""
        return max(phase.needed for phase in self.phases)


@dataclass(frozen=True)
class _Task:
    """What is to be planned."""

    shape: ModelShape
    size: Size
    clips: int
    samples: int
    dtype: torch.dtype
    device: torch.device
    picture: bool
    inverts: bool

    @property
    def pictures(self) -> Literal["none", "concat", "known"]:
        """Return how clips start from a picture."""
        if self.shape.transformers[0].concat_channels:
            return "concat"
        return "known" if self.picture else "none"

    @property
    def grid(self) -> tuple[int, int, int]:
        config = self.shape.autoencoder
        spec = LatentSpec(config.latent_channels, config.stride, config.frame_stride)
        return spec.shape(self.size.frames, self.size.height, self.size.width)[1:]

    @property
    def weights(self) -> list[WeightCount]:
        shape = self.shape
        return [transformer_weights(config, shape.channels, shape.text_dim) for config in shape.transformers]

    @property
    def autoencoder(self) -> int:
        return 4 * autoencoder_weights(self.shape.autoencoder)

    @property
    def image_encoder(self) -> int:
        return self.shape.image_parameters * self.dtype.itemsize


def plan(
    shape: ModelShape,
    size: Size,
    *,
    budget: Budget = "auto",
    clips: int = 1,
    samples: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
    weights: Sequence[Weights] | None = None,
    picture: bool = False,
    inverts: bool = False,
) -> MemoryPlan:
    """Return the fastest way to make clips that fits the memory there is.

    Args:
        shape: of the model; no weights are needed.
        size: of the clips, on the latent grid.
        budget: GiB that the device has for it; "auto" is what it has free now, "low" the way that takes least.
        clips: made at once.
        samples: that each clip is in one call of the transformer, such as one with and one without its text.
        dtype: of the products, and of the weights that most of them take.
        device: where they are computed. On a CPU everything lies in the same memory and only decoding has a choice.
        weights: what the weights of the transformer's blocks may be, best first; None is full, and int8 where torchao
            is installed. Weights spread as those of linear layers are lose less in int8 than in fp8.
        picture: whether clips start from a picture, of a model that can do without.
        inverts: whether clips are there and are encoded, and none are decoded.

    Raises:
        ConfigError: if nothing fits, the size is not on the latent grid, or "auto" finds no such device.
    """
    device = torch.device(device)
    given = None if budget == "low" else _free(device) if budget == "auto" else int(float(budget) * GIB)
    task = _Task(shape, size, clips, clips * samples, dtype, device, picture, inverts)
    allowed: Sequence[Weights] = weights or (("full", "int8") if quantize.available() else ("full",))
    host = device.type != "cpu"  # whether there is another memory than the device's

    (transformer, held), denoising = _chosen(list(_denoisings(task, host, allowed)), given)
    kept = _resident(task, transformer, held)
    text, encoding = _chosen(list(_encodings(task, host, kept)), given)
    (decode, parked), coding = _chosen(list(_codings(task, host, kept)), given)
    strategy = Strategy(text, transformer, held, decode, parked)
    before, after = ([phase for phase in coding if (phase.name == "decode") == last] for last in (False, True))
    phases: tuple[Phase, ...] = (*encoding, *before, *denoising, *after)
    if not host:  # whatever waits does so in the memory that is planned
        phases = tuple(_beside(task, phase, kept) for phase in phases)
        if given is not None and (worst := max(phases, key=lambda phase: phase.needed)).needed > given:
            raise _too_little(worst, given)
    rows = tuple(_rows(task, strategy))
    return MemoryPlan(strategy, rows, phases, _host(task, strategy, rows) if host else 0, given)


def _chosen(ways: Sequence[_Way], given: int | None) -> _Way:
    """Return the first of ``ways`` whose phases fit in ``given`` bytes; with None, the first that takes least."""
    needs = [sorted((phase.needed for phase in phases), reverse=True) for _, phases in ways]
    least = ways[needs.index(min(needs))]
    if given is None:
        return least
    for way, needed in zip(ways, needs, strict=True):
        if needed[0] <= given:
            return way
    raise _too_little(max(least[1], key=lambda phase: phase.needed), given)


def _too_little(phase: Phase, given: int) -> ConfigError:
    return ConfigError(
        f"to {phase.name} needs {phase.needed / GIB:.1f} GiB of memory at the least, but {given / GIB:.1f} GiB are "
        "given; make fewer, shorter or smaller clips"
    )


def _encodings(task: _Task, host: bool, kept: int) -> Iterator[tuple[Text, tuple[Phase]]]:
    weights = task.shape.text_parameters * task.dtype.itemsize
    activations = min(_TEXT_ACTIVATIONS, weights // 4)
    parts = (("text encoder", weights), ("activations", activations))
    yield "beside", (Phase("encode text", (*parts, ("transformer", kept))),)
    if host:
        yield "device", (Phase("encode text", parts),)
        yield "host", (Phase("encode text", (("text states", _text_states(task)),)),)


def _denoisings(
    task: _Task, host: bool, held: Sequence[Weights]
) -> Iterator[tuple[tuple[Kind, Weights], tuple[Phase, ...]]]:
    kinds: list[Kind] = ["resident"]
    if host and len(task.shape.transformers) > 1:
        kinds.append("swapped")
    full, narrow = (([w for w in held if (w == "full") == wanted]) for wanted in (True, False))
    ways: list[tuple[Kind, Weights]] = [(kind, w) for w in full for kind in kinds]
    streamed: list[tuple[Kind, Weights]] = [("streamed", w) for w in full if host]
    # Copies hide behind long computations, while weights of a byte are widened again in each of them.
    ways += streamed if _copies_hide(task) else []
    ways += [(kind, w) for w in narrow for kind in kinds]
    ways += [] if _copies_hide(task) else streamed
    ways += [("streamed", w) for w in narrow if host]
    shape = task.shape
    activations = max(
        dit_bytes(
            Pass(
                *(config, shape.channels, task.grid, task.samples, shape.text_length, shape.text_dim, task.dtype),
                image_length=shape.image_length,
                known=task.pictures == "known",
            )
        )
        for config in shape.transformers
    )
    latents = 4 * task.samples * shape.channels * math.prod(task.grid) * _LATENT_COPIES + _text_states(task)
    for kind, weights in ways:
        parts = [("transformer", _resident(task, kind, weights)), ("activations", activations)]
        if weights != "full":
            widened = max(w.largest for w in task.weights) * quantize.widened_bytes(weights, task.dtype)
            parts.append(("a widened layer", widened))
        if pictures := _picture_states(task):
            parts.append(("pictures", pictures))
        phases: tuple[Phase, ...] = (Phase("denoise", (*parts, ("latents and text", latents))),)
        if weights != "full" and not host:  # made of all weights in full, which lie in the same memory
            phases = (Phase("read weights", (("transformer", _resident(task, kind, "full")),)), *phases)
        yield (kind, weights), phases


def _codings(task: _Task, host: bool, kept: int) -> Iterator[tuple[tuple[Decode, bool], tuple[Phase, ...]]]:
    """Yield ways to decode, with the phase in which pictures are encoded: the transformer waits in the same place.

    Where none are decoded, only encoding counts.
    """
    size, config = task.size, task.shape.autoencoder
    pictures: tuple[tuple[str, int], ...] = ()
    if task.inverts or task.pictures != "none":
        length = size.frames if task.inverts or task.pictures == "concat" else 1
        frames = 2 * 4 * 3 * task.clips * size.height * size.width  # pictures, fitted one by one
        activations = encode_bytes(config, (length, size.height, size.width), task.clips)
        states = 2 * _picture_states(replace(task, samples=0))  # masks and latents, then together
        pictures = (("autoencoder", task.autoencoder), ("activations", activations), ("pictures", frames + states))
    for (decode, parked), phase in _decodings(task, host, kept):
        parts = pictures if parked else (*pictures, ("transformer", kept))
        encoding = [Phase("encode pictures", parts)] if pictures else []
        yield (decode, parked), (*([] if task.inverts else [phase]), *encoding)


def _decodings(task: _Task, host: bool, kept: int) -> Iterator[tuple[tuple[Decode, bool], Phase]]:
    size, config, fused = task.size, task.shape.autoencoder, task.device.type != "cpu"
    f, h, w = task.grid
    parkings = (False, True) if host else (False,)
    # As `vidiff.decoding.decode` decides: only small clips are decoded whole.
    whole = task.clips * f * config.frame_stride * size.height * size.width <= WHOLE
    ways: tuple[Decode, ...] = ("whole", "chunks") if whole else ("chunks",)
    clip = 4 * 3 * task.clips * size.frames * size.height * size.width
    for way, parked in [*((way, parked) for way in ways for parked in parkings), *(("tiles", p) for p in parkings)]:
        grid = (f, min(h, TILE), min(w, TILE)) if way == "tiles" else task.grid
        activations = decode_bytes(
            config, grid, task.clips, task.dtype, chunk=None if way == "whole" else 1, fused_norms=fused
        )
        parts = [("autoencoder", task.autoencoder), ("activations", activations)]
        parts.append(("latents", 4 * task.clips * config.latent_channels * f * h * w))
        if way == "tiles":  # blended where they overlap, with a tile's pieces and the tile itself
            tile = clip * grid[1] * grid[2] // (h * w)
            parts.append(("frames", clip + 2 * tile))
        if not parked:
            parts.append(("transformer", kept))
        yield (way, parked), Phase("decode", tuple(parts))


def _beside(task: _Task, phase: Phase, kept: int) -> Phase:
    """Return a phase on a CPU, with the weights of the others, which lie in the same memory."""
    waiting = {"transformer": kept, "autoencoder": task.autoencoder}
    if task.image_encoder:
        waiting["image encoder"] = task.image_encoder
    names = {name for name, _ in phase.parts}
    return replace(phase, parts=(*phase.parts, *((n, size) for n, size in waiting.items() if n not in names)))


def _copies_hide(task: _Task) -> bool:
    """Return whether a block computes for longer than its weights take to come to the device."""
    config, weights = task.shape.transformers[0], task.weights[0]
    tokens = math.prod(task.grid) // math.prod(config.patch_size)
    attention = 2 * config.depth * tokens * tokens * config.dim  # scores and sums, in multiply-adds
    computing = 2 * task.samples * (tokens * weights.blocks + attention) / _COMPUTED
    return computing > weights.blocks * task.dtype.itemsize / _COPIED


def _text_states(task: _Task) -> int:
    return 4 * task.samples * task.shape.text_length * task.shape.text_dim


def _picture_states(task: _Task) -> int:
    """Return the bytes of what a transformer is told of pictures, once and joined for each call of it."""
    config = task.shape.transformers[0]
    numbers = config.concat_channels * math.prod(task.grid) + task.shape.image_length * (config.image_dim or 0)
    if task.pictures == "known":
        numbers = task.shape.channels * math.prod(task.grid[1:])
    return 4 * (task.clips + task.samples) * numbers


def _bytes(task: _Task, weights: WeightCount, held: Weights) -> tuple[int, int]:
    """Return the bytes of one transformer and those of its blocks."""
    size = task.dtype.itemsize
    # An output channel has a scale, float32, and in int8 a zero point.
    rows = {"full": 0, "int8": 5, "fp8": 4}[held] * weights.rows
    linears = weights.blocks * (size if held == "full" else 1) + rows
    blocks = linears + weights.rows * size + weights.float32_blocks * 4
    rest = (weights.lower - weights.rows) * size + (weights.float32 - weights.float32_blocks) * 4
    return blocks + rest, blocks


def _resident(task: _Task, kind: Kind, held: Weights) -> int:
    """Return the bytes of transformers' weights that are on the device at once."""
    totals = []
    for config, weights in zip(task.shape.transformers, task.weights, strict=True):
        total, blocks = _bytes(task, weights, held)
        streamed = blocks - blocks // config.depth * min(config.depth, 1 + PREFETCH)
        totals.append(total - streamed if kind == "streamed" else total)
    return max(totals) if kind == "swapped" else sum(totals)


def _rows(task: _Task, strategy: Strategy) -> Iterator[Row]:
    name = str(task.dtype).removeprefix("torch.")
    text = task.shape.text_parameters * task.dtype.itemsize
    yield Row("text encoder", "host" if strategy.text == "host" else "freed", name, text)
    places: dict[Kind, Where] = {"resident": "device", "swapped": "host", "streamed": "streamed"}
    where = places[strategy.transformer]
    for number, weights in enumerate(task.weights, 1):
        of = f" {number}" if len(task.weights) > 1 else ""
        total, blocks = _bytes(task, weights, strategy.weights)
        yield Row(f"transformer{of}, blocks", where, name if strategy.weights == "full" else strategy.weights, blocks)
        # What is not in blocks is on the device even of a transformer whose blocks are streamed.
        rest: Where = "device" if where == "streamed" else where
        yield Row(f"transformer{of}, rest", rest, f"{name}, float32", total - blocks)
    home: Where = "device" if task.device.type == "cpu" else "host"
    if task.image_encoder:  # works on the host, once a clip
        yield Row("image encoder", home, name, task.image_encoder)
    yield Row("autoencoder", home, "float32", task.autoencoder)


def _host(task: _Task, strategy: Strategy, rows: tuple[Row, ...]) -> int:
    """Return the bytes of weights in host memory, at the most."""
    transformer = [row for row in rows if row.what.startswith("transformer")]
    others = sum(row.bytes for row in rows if row.where == "host" and row not in transformer)
    if strategy.weights != "full":  # made on the host, of all weights in full
        return others + _resident(task, "resident", "full")
    # Of blocks that are streamed, the rest is read to the host with them.
    stays = strategy.transformer == "resident" and not strategy.parked
    return others + (0 if stays else sum(row.bytes for row in transformer))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("memory: auto asks the device what it has free, and there is none; give a number of GiB")
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        raise ConfigError(f"memory: auto does not know what a {device.type} device has free; give a number of GiB")
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
