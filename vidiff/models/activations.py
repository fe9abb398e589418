"""How much memory a forward pass takes beside the weights, by counting the tensors that are alive.

Each function walks through the code it is named after and keeps a `Tally`: what a line makes is held, what a line
forgets is dropped. Nothing is computed, so the sizes may be those of the largest published models.
`tests/test_activations.py` compares the counts with tensors really alive.

Axes: B batch, T tokens of all samples, L text tokens, M states of a picture, D width; C channels, f h w latent frames,
rows, columns.
"""

import math
from dataclasses import dataclass, field

import torch

from vidiff.models.dit import DiTConfig

_SMALL = 10  # bytes a token of a `QueryKeyNorm`: norm and inverse in float32, inverse in bf16


@dataclass
class Tally:
    """Bytes of what is alive, by name, and the most that was alive at once."""

    alive: dict[str, float] = field(default_factory=dict)
    peak: float = 0

    def hold(self, **sizes: float) -> None:
        """Make tensors of these bytes, in this order; a name held already is replaced once the new one is there."""
        for name, size in sizes.items():
            self.peak = max(self.peak, sum(self.alive.values()) + size)
            self.alive[name] = size

    def drop(self, *names: str) -> None:
        for name in names:
            del self.alive[name]


@dataclass(frozen=True)
class Pass:
    """One forward pass of a `SpaceTimeDiT`."""

    config: DiTConfig
    channels: int  # of the latents
    grid: tuple[int, int, int]  # latents along (f, h, w)
    samples: int  # B
    text_length: int  # L
    text_dim: int
    dtype: torch.dtype  # of the products; the rest is float32, see `vidiff.models.quantize.lower_weights`
    image_length: int = 0  # M, of a transformer that reads a picture's states
    known: bool = False  # whether first frames are given: each token then has modulations of its own

    @property
    def tokens(self) -> int:
        """Return T, of all samples together."""
        return self.samples * math.prod(self.grid) // math.prod(self.config.patch_size)

    @property
    def half(self) -> bool:
        return self.dtype != torch.float32


def dit_bytes(run: Pass) -> int:
    """Return the most bytes alive at once in one call of a `SpaceTimeDiT` without gradients, beside its arguments.

    Attention is counted as the fused kernel runs it, without the (T, T) scores.
    """
    config, dim, rows = run.config, run.config.dim, run.tokens
    size = run.dtype.itemsize
    tally = Tally()
    numbers = math.prod(config.patch_size) * run.channels
    seen = math.prod(config.patch_size) * (run.channels + config.concat_channels)  # with what a picture adds
    tally.hold(seen=rows * seen * 4 if config.concat_channels else 0)
    tally.hold(patches=rows * seen * 4, positions=rows // run.samples * 24)
    if run.half:  # autocast keeps the float32 layers' weights in the products' type for the whole pass
        heads = 2 if config.input_skip else 1
        tally.hold(weights=(dim * seen + dim + heads * (dim * numbers + numbers)) * size, cast=rows * seen * size)
        tally.hold(low=rows * dim * size)
        tally.drop("cast")
    tally.hold(embedded=rows * dim * 4)
    if run.half:
        tally.drop("low")
    tally.hold(emb=run.samples * 3 * config.num_branches * dim * 4 if config.modulation == "shared" else 0)
    table = rows // run.samples * config.head_dim // 2
    tally.hold(angles=table * 8, angle=table * 8, ones=table * 8, polar=table * 16, rotary=table * 8)
    tally.drop("angles", "angle", "ones", "polar")
    _picture(tally, run)
    words = run.samples * run.text_length
    tally.hold(text_in=words * run.text_dim * size if run.half else 0, text=words * dim * size)
    tally.drop("text_in")
    _block(tally, run)
    tally.drop("text", "image", "embedded")
    _head(tally, run, numbers)
    return int(tally.peak)


def _picture(tally: Tally, run: Pass) -> None:
    """Count the projection of a picture's states; leaves ``image``, which all blocks read."""
    width, dim, size = run.config.image_dim, run.config.dim, run.dtype.itemsize
    if width is None:
        tally.hold(image=0)
        return
    states = run.samples * run.image_length
    if run.half:
        tally.hold(picture_weights=(width * width + width + width * dim + dim) * size)
    tally.hold(norm_in=states * width * 4, cast_in=states * width * size if run.half else 0)
    tally.hold(hidden=states * width * size)
    tally.drop("norm_in", "cast_in")
    tally.hold(gelu=states * width * size, wide=states * dim * size)
    tally.drop("gelu")
    tally.hold(image=states * dim * size)
    tally.drop("wide", "hidden")


def _block(tally: Tally, run: Pass) -> None:
    """Count the second block, which finds the embedded tokens and the first one's result."""
    config, rows = run.config, run.tokens
    stream, product = rows * config.dim * 4, rows * config.dim * run.dtype.itemsize
    tally.hold(tokens=stream)  # the block's argument, which its caller keeps
    each = rows if run.known else run.samples
    tally.hold(branches=each * 3 * config.num_branches * config.dim * 4, y=0)
    for branch in range(config.num_branches - 1):
        _modulated(tally, run)
        _attention(tally, run, rows, rotary=True, regrouped=config.attention == "factorized" and branch == 1)
        _gated(tally, run, "after")
        tally.drop("gated", "attended")
    # Autocast on CUDA makes norms float32, which is not counted: they are small beside the two peaks of a block, the
    # rotation of the keys and the hidden layer.
    tally.hold(cast=product if run.half else 0, y=product)
    tally.drop("cast")
    pictures = 0 if config.image_dim is None else run.samples * run.image_length
    _attention(tally, run, run.samples * run.text_length, rotary=False, regrouped=False, pictures=pictures)
    tally.hold(after=stream)
    tally.drop("attended")
    hidden = rows * config.hidden_dim * run.dtype.itemsize
    _modulated(tally, run, name="modulated")
    tally.hold(y=hidden)
    tally.drop("modulated")
    tally.hold(gelu=hidden, out=product)
    tally.drop("gelu")
    _gated(tally, run, "result")
    tally.drop("y", "gated", "out", "result", "after", "branches")


def _modulated(tally: Tally, run: Pass, name: str = "y") -> None:
    """Count a norm, its shift and its scale; the last ``y`` stays until the new one is there."""
    product = run.tokens * run.config.dim * run.dtype.itemsize
    tally.hold(cast=product if run.half else 0, norm=product)
    tally.drop("cast")
    if run.known:
        tally.hold(shift=product if run.half else 0, wide=run.tokens * run.config.dim * 4)
        tally.hold(scale=product if run.half else 0)
        tally.drop("wide" if run.half else "scale")
    tally.hold(**{name: product})
    tally.drop("norm", *(("shift", "scale" if run.half else "wide") if run.known else ()))


def _gated(tally: Tally, run: Pass, name: str) -> None:
    """Count a branch's gate and its sum with the tokens, held as ``name``; leaves their product, ``gated``."""
    numbers = run.tokens * run.config.dim
    gate = numbers * run.dtype.itemsize if run.known and run.half else 0
    tally.hold(gate=gate, gated=numbers * run.dtype.itemsize)
    tally.drop("gate")
    tally.hold(**{name: numbers * 4})


def _attention(tally: Tally, run: Pass, keys: int, rotary: bool, regrouped: bool, pictures: int = 0) -> None:
    """Count an attention from all tokens to ``keys`` others and states of pictures; leaves its result, ``attended``."""
    size, dim, rows = run.dtype.itemsize, run.config.dim, run.tokens
    mine, theirs = rows * dim * size, keys * dim * size
    table = run.tokens * run.config.head_dim // 2 * 8
    if regrouped:  # along time tokens and rotations are copied into another order, within frames they are not
        tally.hold(regrouped=mine, rotations=table)
    tally.hold(raw=mine, small=rows * _SMALL, unit=mine, q=mine)
    tally.hold(raw=theirs, small=keys * _SMALL, unit=theirs, k=theirs)
    tally.drop("raw", "small", "unit")
    tally.hold(v=theirs)
    if rotary:
        floats = rows * dim * 4
        for turned in ("turned_q", "turned_k"):
            if run.half:
                tally.hold(pairs=floats, product=floats, **{turned: mine})
                tally.drop("pairs", "product")
            else:  # the pairs are a view, and the product is the result
                tally.hold(**{turned: floats})
        tally.drop("turned_q", "turned_k")  # they take the place of those before
    tally.hold(heads=mine, sums=rows * run.config.num_heads * 4)
    tally.drop("sums")
    if pictures:
        shown = pictures * dim * size
        tally.hold(raw=shown, small=pictures * _SMALL, unit=shown, k_image=shown)
        tally.drop("raw", "small", "unit")
        tally.hold(v_image=shown)
        tally.hold(k=0, v=0, picture_heads=mine, sums=rows * run.config.num_heads * 4)
        tally.drop("sums")
        tally.hold(heads=mine)  # of both together, while each is there
        tally.drop("picture_heads")
    tally.hold(attended=mine)
    tally.drop("q", "k", "v", "heads", *(("k_image", "v_image") if pictures else ()))
    if regrouped:
        tally.drop("regrouped", "rotations")


def _head(tally: Tally, run: Pass, numbers: int) -> None:
    rows, dim = run.tokens, run.config.dim
    each = rows * dim * 4 if run.known else 0
    tally.hold(branches=2 * each, y=rows * dim * 4, scale=each, modulated=rows * dim * 4)
    tally.drop("scale")
    tally.hold(cast=rows * dim * run.dtype.itemsize if run.half else 0, out=rows * numbers * run.dtype.itemsize)
    tally.drop("cast", "modulated")
    tally.hold(output=rows * numbers * 4, result=rows * numbers * 4)
