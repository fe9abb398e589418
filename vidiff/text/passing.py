"""A text encoder that is in memory only while it works."""

import gc
from collections.abc import Callable

import torch

from vidiff.types import TextEmbedding, TextEncoder


class PassingTextEncoder:
    """Builds an encoder when prompts are new, and lets it go when it is told that there are no more for now.

    States are kept on the CPU: a prompt is encoded once.
    """

    def __init__(self, build: Callable[[], TextEncoder], dim: int):
        self.build, self.dim = build, dim
        self._known: dict[str, TextEmbedding] = {}
        self._encoder: TextEncoder | None = None

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed ``prompts``: tokens (B, L, dim) on the CPU, zero where masked."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            self._encoder = self._encoder or self.build()
            found = self._encoder.encode(new).to("cpu")
            for row, prompt in enumerate(new):
                self._known[prompt] = TextEmbedding(found.tokens[row : row + 1], found.mask[row : row + 1])
        rows = [self._known[prompt] for prompt in prompts]
        length = max(row.tokens.shape[1] for row in rows)
        padded = [row.padded(length) for row in rows]
        return TextEmbedding(torch.cat([row.tokens for row in padded]), torch.cat([row.mask for row in padded]))

    def release(self) -> None:
        """Free the encoder's memory until a new prompt comes."""
        if self._encoder is None:
            return
        self._encoder = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
