"""A text encoder that is in memory only while it works."""

import gc
from collections.abc import Callable

import torch

from vidiff.types import TextEmbedding, TextEncoder


class PassingTextEncoder:
    """Builds an encoder when prompts are new, and lets it go once their states are there.

    States are kept on the CPU: a prompt is encoded once.
    """

    def __init__(self, build: Callable[[], TextEncoder], dim: int):
        self.build, self.dim = build, dim
        self._known: dict[str, TextEmbedding] = {}

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed ``prompts``: tokens (B, L, dim) on the CPU, zero where masked."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            encoder = self.build()
            found = encoder.encode(new).to("cpu")
            for row, prompt in enumerate(new):
                self._known[prompt] = TextEmbedding(found.tokens[row : row + 1], found.mask[row : row + 1])
            del encoder
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        rows = [self._known[prompt] for prompt in prompts]
        length = max(row.tokens.shape[1] for row in rows)
        padded = [row.padded(length) for row in rows]
        return TextEmbedding(torch.cat([row.tokens for row in padded]), torch.cat([row.mask for row in padded]))
