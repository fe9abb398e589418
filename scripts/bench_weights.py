"""Measure what weights of a byte each change in a transformer's output, on random networks.

python scripts/bench_weights.py     # needs torchao
"""

from copy import deepcopy
from typing import get_args

import torch
from torch import nn

from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.models.quantize import Bytes, block_linears, byte_weights
from vidiff.types import Conditioning, TextEmbedding

SIZES = {
    "tiny: width 96, 2 blocks": DiTConfig(dim=96, depth=2, num_heads=2),
    "mid-size: width 1024, 8 blocks": DiTConfig(dim=1024, depth=8, num_heads=8),
}
SPREADS = ("normal", "a weight in 1000 is 20 times larger")
KINDS: tuple[Bytes, ...] = get_args(Bytes)


def network(config: DiTConfig, spread: str, seed: int) -> SpaceTimeDiT:
    """Return a network whose branches all change the tokens; of its blocks' weights a few may lie far out."""
    torch.manual_seed(seed)
    made = SpaceTimeDiT(config, in_channels=16, text_dim=64)
    nn.init.xavier_uniform_(made.out.weight)
    for linear in block_linears(made.blocks):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        if spread != SPREADS[0]:
            linear.weight.data[torch.rand_like(linear.weight) < 1e-3] *= 20
    return made.eval().requires_grad_(False)


def errors(config: DiTConfig, spread: str, seed: int) -> list[float]:
    """Return for each kind the norm of the output's change over the norm of the output."""
    full = network(config, spread, seed)
    text = TextEmbedding(torch.randn(2, 32, 64), torch.ones(2, 32, dtype=torch.bool))
    given = torch.randn(2, 16, 3, 8, 8), torch.tensor([0.3, 0.8]), Conditioning(text)
    expected, found = full(*given), []
    for kind in KINDS:
        narrow = deepcopy(full)
        byte_weights(narrow, kind)
        found.append(float((narrow(*given) - expected).norm() / expected.norm()))
    return found


def main() -> None:
    print(f"| network | weights | {' | '.join(KINDS)} |")
    print(f"|---|---|{'--:|' * len(KINDS)}")
    for name, config in SIZES.items():
        for spread in SPREADS:
            runs = [errors(config, spread, seed) for seed in range(3)]
            means = (sum(column) / len(runs) for column in zip(*runs, strict=True))
            print(f"| {name} | {spread} | {' | '.join(f'{100 * mean:.2f} %' for mean in means)} |")


if __name__ == "__main__":
    main()
