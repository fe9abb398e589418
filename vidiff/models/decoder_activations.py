"""How much memory a `VideoVAE` takes to decode, beside its weights: `vidiff.models.activations` for the autoencoder.

The walk goes over the decoder itself, built without numbers, and so knows of every option of its config.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from vidiff.models.activations import Tally
from vidiff.models.autoencoder import Decoder, VideoVAEConfig
from vidiff.models.causal import AttentionPerFrame, CausalConv3d, DuplicateUp, ResBlock, Upsample


@dataclass(frozen=True)
class Volume:
    """Size of one tensor: (B, C, F, H, W)."""

    samples: int
    channels: int
    frames: int
    height: int
    width: int

    @property
    def numbers(self) -> int:
        return self.samples * self.channels * self.frames * self.height * self.width


@dataclass
class Walk:
    """One decode or encode: what is alive, and how it runs."""

    size: int  # bytes of a number
    wide_norms: bool  # whether a norm works on float32 copies
    streamed: bool
    tally: Tally = field(default_factory=Tally)
    seen: set[nn.Module] = field(default_factory=set)  # temporal layers that have left frames behind

    def bytes(self, volume: Volume) -> int:
        return volume.numbers * self.size


def decode_bytes(
    config: VideoVAEConfig,
    grid: tuple[int, int, int],
    samples: int,
    dtype: torch.dtype,
    *,
    chunk: int | None = 1,
    fused_norms: bool = True,
) -> int:
    """Return the most bytes alive at once while latents become frames, beside the latents themselves.

    Args:
        config: of the autoencoder, whose weights are float32.
        grid: latents along (f, h, w).
        samples: B.
        dtype: of the products, under autocast; the activations are in it too.
        chunk: latent frames that `VideoVAE.decode_stream` takes at a time; None is `VideoVAE.decode`, all at once.
        fused_norms: whether a norm is one kernel, as on CUDA; a CPU makes float32 copies of bf16 numbers.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    half = dtype != torch.float32
    walk = Walk(dtype.itemsize, half and not fused_norms, chunk is not None)
    f, h, w = grid
    latents = Volume(samples, config.latent_channels, f, h, w)
    if half:  # autocast keeps a copy of the weights
        kernels = sum(p.numel() for m in decoder.modules() if _is_conv(m) for p in m.parameters(recurse=False))
        walk.tally.hold(kernels=kernels * walk.size)
    walk.tally.hold(denormalized=latents.numbers * 4)
    # The first piece, one in the steady state, and another that finds this one's result not yet dropped.
    for number in range(1 if chunk is None else min(3, math.ceil(f / chunk))):
        piece = replace(latents, frames=min(chunk or f, f - number * (chunk or f)))
        _piece(walk, decoder, piece, config, number == 0)
    return int(walk.tally.peak)


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Conv3d)


def _piece(walk: Walk, decoder: Decoder, latents: Volume, config: VideoVAEConfig, first: bool) -> None:
    tally = walk.tally
    tally.hold(z=latents.numbers * 4, x=walk.bytes(latents))
    x = convolved(walk, decoder.conv_in, latents, "x")
    x = res_block(walk, decoder.middle.before, x)
    if isinstance(decoder.middle.attention, AttentionPerFrame):
        attended(walk, x)
    x = res_block(walk, decoder.middle.after, x)
    tally.alive["level"] = tally.alive["x"]  # a name for the same tensor, until the first block makes another
    tally.alive["x"] = 0
    level = x
    for index, block in enumerate(decoder.up):
        x = res_block(walk, block, x) if isinstance(block, ResBlock) else _upsampled(walk, block, x)
        if str(index) in decoder.shortcuts:
            _shortcut(walk, decoder.shortcuts[str(index)], level, x)
            level = x
    activated(walk, x)
    pixels = convolved(walk, decoder.conv_out, x, "folded")
    tally.drop("activated", "x", "level")
    out = pixels.numbers
    tally.hold(unfolded=out * walk.size if config.patch_size * config.patch_frames > 1 else 0)
    tally.hold(float=out * 4 if walk.size < 4 else 0, video=out * 4)
    tally.drop("float", "unfolded", "folded", "z")


def convolved(walk: Walk, conv: CausalConv3d, x: Volume, name: str) -> Volume:
    """Count a causal convolution, whose result is held as ``name``."""
    out = replace(x, channels=conv.out_channels)
    if not conv.reach:
        walk.tally.hold(**{name: walk.bytes(out)})
        return out
    halo, past = walk.bytes(replace(x, frames=conv.reach)), f"past{id(conv)}"
    # The frames before stay until the layer returns; those for the next chunk are there by then.
    if past not in walk.tally.alive:
        walk.tally.hold(before=0)  # zeros are one number, seen many times
    else:
        walk.tally.alive["before"] = walk.tally.alive.pop(past)
    walk.tally.hold(joined=walk.bytes(x) + halo)
    if walk.streamed:
        walk.tally.hold(**{past: halo})
    walk.tally.hold(**{name: walk.bytes(out)})
    walk.tally.drop("before", "joined")
    return out


def activated(walk: Walk, x: Volume) -> None:
    """Count a norm and SiLU; leaves the result, ``activated``."""
    if walk.wide_norms:
        walk.tally.hold(wide=x.numbers * 4, scaled=x.numbers * 4, weighted=x.numbers * 4)
        walk.tally.drop("wide", "scaled", "weighted")
    walk.tally.hold(normed=walk.bytes(x), activated=walk.bytes(x))
    walk.tally.drop("normed")


def res_block(walk: Walk, block: ResBlock, x: Volume) -> Volume:
    """Count a `ResBlock`, whose result takes the place of ``x``."""
    tally = walk.tally
    activated(walk, x)
    out = convolved(walk, block.conv1, x, "y")
    tally.drop("activated")
    activated(walk, out)
    convolved(walk, block.conv2, out, "y")
    tally.drop("activated")
    tally.hold(skip=walk.bytes(out) if block.shortcut is not None and _is_conv(block.shortcut) else 0)
    tally.hold(x=walk.bytes(out))
    tally.drop("skip", "y")
    return out


def attended(walk: Walk, x: Volume) -> None:
    """Count an `AttentionPerFrame`, whose result takes the place of ``x``."""
    one = walk.bytes(x)
    walk.tally.hold(y=one, qkv=3 * one, heads=3 * one, attended=one)
    walk.tally.drop("qkv", "y")
    walk.tally.hold(y=one, x=one)
    walk.tally.drop("y", "heads", "attended")


def _upsampled(walk: Walk, block: nn.Module, x: Volume) -> Volume:
    assert isinstance(block, Upsample)
    tally = walk.tally
    given = walk.bytes(x)
    tally.hold(times=0)
    if block.time is not None:
        x = _doubled(walk, block, block.time, x)
    if block.space is None:
        tally.alive["x"] = tally.alive.pop("times") or given
        return x
    out = replace(x, channels=block.space.out_channels, height=2 * x.height, width=2 * x.width)
    # The four places that come from each pixel, with a row and a column more than there are, and then in their order.
    tally.hold(four=walk.bytes(replace(out, channels=4 * out.channels, height=x.height + 1, width=x.width + 1)))
    tally.hold(y=walk.bytes(out))
    tally.drop("four", "times")
    tally.alive["x"] = tally.alive.pop("y")
    return out


def _doubled(walk: Walk, block: Upsample, time: CausalConv3d, x: Volume) -> Volume:
    """Count the doubling of frames; the first frame of a clip stays single."""
    single = not walk.streamed or block not in walk.seen
    walk.seen.add(block)
    rest = replace(x, frames=x.frames - single)
    if rest.frames == 0:
        return x
    convolved(walk, time, rest, "wider")
    out = replace(x, frames=2 * rest.frames + single)
    walk.tally.hold(doubled=walk.bytes(replace(rest, frames=2 * rest.frames)))
    walk.tally.drop("wider")
    if single:
        walk.tally.hold(times=walk.bytes(out))
        walk.tally.drop("doubled")
    else:
        walk.tally.alive["times"] = walk.tally.alive.pop("doubled")
    return out


def _shortcut(walk: Walk, shortcut: nn.Module, level: Volume, x: Volume) -> None:
    assert isinstance(shortcut, DuplicateUp)
    repeated = walk.bytes(level) * shortcut.repeats
    at_once = shortcut.repeats == shortcut.factor_t * shortcut.factor_s**2
    walk.tally.hold(repeated=0 if at_once else repeated, unfolded=repeated)
    walk.tally.drop("repeated")
    walk.tally.hold(y=walk.bytes(x))
    walk.tally.drop("unfolded")
    walk.tally.alive["level"] = walk.tally.alive.pop("y")
    walk.tally.alive["x"] = 0
