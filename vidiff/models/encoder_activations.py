"""How much memory a `VideoVAE` takes to encode a clip piece by piece, beside its weights.

As `vidiff.models.decoder_activations`, whose parts it walks through in the other direction.
"""

from dataclasses import replace

import torch

from vidiff.models.autoencoder import Encoder, VideoVAEConfig
from vidiff.models.causal import AttentionPerFrame, AverageDown, Downsample, ResBlock
from vidiff.models.decoder_activations import Volume, Walk, activated, attended, convolved, res_block

_SIZE = 4  # bytes of a number: pictures are encoded in float32


def encode_bytes(config: VideoVAEConfig, clip: tuple[int, int, int], samples: int) -> int:
    """Return the most bytes alive at once in `VideoVAE.encode_pieces`, in float32, beside the pieces.

    Attention is counted as a fused kernel runs it; only for clips of a single frame are its scores near the peak.

    Args:
        config: of the autoencoder.
        clip: frames, height and width in pixels; pieces are the first frame and then as many as a latent frame.
        samples: B.
    """
    with torch.device("meta"):
        encoder = Encoder(config)
    walk, (frames, height, width) = Walk(_SIZE, False, True), clip
    p, t = config.patch_size, config.patch_frames
    piece = Volume(samples, config.patch_channels, 1, height // p, width // p)
    latents = samples * config.latent_channels * (1 + (frames - 1) // config.frame_stride)
    # With the posterior of a piece, which is small.
    walk.tally.hold(latents=3 * latents * (height // config.stride) * (width // config.stride) * 4)
    # The first frame, a piece that finds its past, and one in the steady state.
    for number in range(1 if frames == 1 else 3):
        _piece(walk, encoder, piece if number == 0 else replace(piece, frames=config.frame_stride // t))
    return int(walk.tally.peak)


def _piece(walk: Walk, encoder: Encoder, folded: Volume) -> None:
    tally = walk.tally
    tally.hold(folded=walk.bytes(folded), x=0)
    x = convolved(walk, encoder.conv_in, folded, "x")
    tally.alive["level"] = tally.alive["x"]  # a name for the same tensor, until the first block makes another
    tally.alive["x"] = 0
    level = x
    for index, block in enumerate(encoder.down):
        x = res_block(walk, block, x) if isinstance(block, ResBlock) else _downsampled(walk, block, x)
        if str(index) in encoder.shortcuts:
            _shortcut(walk, encoder.shortcuts[str(index)], level, x)
            level = x
    x = res_block(walk, encoder.middle.before, x)
    if isinstance(encoder.middle.attention, AttentionPerFrame):
        attended(walk, x)
    x = res_block(walk, encoder.middle.after, x)
    activated(walk, x)
    convolved(walk, encoder.conv_out, x, "moments")
    tally.drop("activated", "x", "level", "moments", "folded")


def _downsampled(walk: Walk, block: torch.nn.Module, x: Volume) -> Volume:
    assert isinstance(block, Downsample)
    tally = walk.tally
    if block.space is not None:
        padded = replace(x, height=x.height + 1, width=x.width + 1)
        x = replace(x, height=x.height // 2, width=x.width // 2)
        tally.hold(padded=walk.bytes(padded), y=walk.bytes(x))
        tally.drop("padded")
    else:
        tally.hold(y=0)
    if block.time is not None:
        x = _halved(walk, block, x)
    tally.alive["x"] = tally.alive.pop("y") or tally.alive["x"]
    return x


def _halved(walk: Walk, block: Downsample, x: Volume) -> Volume:
    """Count the halving of frames: the first frame of a clip stays single, later ones join the last one before."""
    tally, last = walk.tally, f"past{id(block)}"
    one = walk.bytes(replace(x, frames=1))
    before = tally.alive.pop(last, None)
    tally.hold(before=0 if before is None else before)
    tally.hold(**{last: one})
    if before is not None:
        out = replace(x, frames=x.frames // 2)
        tally.hold(joined=walk.bytes(x) + one, halved=walk.bytes(out))
        tally.drop("joined")
        x = out
        tally.alive["y"] = tally.alive.pop("halved")
    tally.drop("before")
    return x


def _shortcut(walk: Walk, shortcut: torch.nn.Module, level: Volume, x: Volume) -> None:
    assert isinstance(shortcut, AverageDown)
    whole = walk.bytes(replace(level, frames=level.frames + -level.frames % shortcut.factor_t))
    walk.tally.hold(completed=whole, folds=whole)
    walk.tally.drop("completed")
    walk.tally.hold(means=walk.bytes(x))
    walk.tally.drop("folds")
    walk.tally.hold(y=walk.bytes(x))
    walk.tally.drop("means")
    walk.tally.alive["level"] = walk.tally.alive.pop("y")
    walk.tally.alive["x"] = 0
