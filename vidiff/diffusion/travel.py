r"""Prompt travel: several prompts in one clip, ``a red fox | a white wolf``.

A bar that stands alone as a word parts the prompts; ``\|`` is the word ``|`` itself. The estimates of x_0 under the
prompts are mixed, one evaluation each, and guidance is applied to the mixture. What the weights depend on is the kind
of travel: the latent frame, from the first prompt in the first frame to the last one in the last; the step, each prompt
for its part of them; or nothing, a blend. A blend is the conjunction of composable diffusion (Liu et al., 2022),
null + sum_i w_i (cond_i - null), with the scale of guidance shared out among the w_i. A last word ``:2`` gives a prompt
its weight in a blend, or its share of the steps.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vidiff.diffusion.scale_schedule import step_of
from vidiff.errors import ConfigError, did_you_mean
from vidiff.types import Conditioning

Travel = Literal["frames", "time", "blend"]
TRAVELS: tuple[Travel, ...] = get_args(Travel)

_BAR, _ESCAPED = "|", "\\|"
_WEIGHT = re.compile(r":(\d+(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class PromptTravel:
    """Prompts of one clip with their weights."""

    kind: Travel
    prompts: tuple[str, ...]
    weights: tuple[float, ...]

    def table(self, num_steps: int, frames: int) -> Tensor:
        """Return how much each prompt counts, (num_steps, P, frames), float64; the P weights add up to 1.

        Args:
            num_steps: of sampling.
            frames: latent ones of the clip.

        Raises:
            ConfigError: if there are fewer frames or steps than prompts.
        """
        count = len(self.prompts)
        if self.kind == "frames":
            if frames < count:
                raise ConfigError(
                    f"{count} prompts travel over frames, but the clip has {frames} latent frame{'s' * (frames > 1)}; "
                    "make it longer, give fewer prompts, or use --travel time or blend"
                )
            place = torch.linspace(0, count - 1, frames, dtype=torch.float64)
            shares = (1 - (place - torch.arange(count)[:, None]).abs()).clamp(min=0)
            return shares.expand(num_steps, -1, -1)
        shares = torch.tensor(self.weights, dtype=torch.float64)
        shares = shares / shares.sum()
        if self.kind == "time":
            middles = (torch.arange(num_steps, dtype=torch.float64) + 0.5) / num_steps
            turn = torch.bucketize(middles, shares.cumsum(0)[:-1], right=True)
            shares = torch.nn.functional.one_hot(turn, count).double()
            if not shares.any(0).all():
                raise ConfigError(
                    f"{num_steps} steps are too few for {count} prompts with these shares of the time; take more "
                    "--steps, or use --travel frames or blend"
                )
        return shares[..., None].expand(num_steps, count, frames)


@dataclass(frozen=True)
class Mixed:
    """Conditionings of the same B samples, with how much each counts."""

    conds: tuple[Conditioning, ...]  # P of them
    table: Tensor | None = None  # (num_steps, P, B, f), float64; None for a single one

    def at(self, t: Tensor, times: Tensor | None) -> tuple[list[Conditioning], Tensor | None]:
        """Return the P' conditionings that count at the times ``t`` (B,), with weights for `blended`, (P', B, f).

        Raises:
            ConfigError: if ``times``, those of the steps, are missing.
        """
        if self.table is None:
            return list(self.conds), None
        if times is None:
            raise ConfigError("prompt travel needs the times that sampling visits")
        steps = step_of(t, times)
        weights = self.table.to(t.device)[steps, :, torch.arange(len(t), device=t.device)].transpose(0, 1)
        used = [index for index, one in enumerate(weights) if one.any()]
        return [self.conds[index] for index in used], weights[used]


def blended(estimates: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Return the sum of the ``estimates``, each (B, C, f, h, w), times ``weights`` (P, B, f); None for a single one."""
    if weights is None:
        return estimates[0]
    shares = weights[:, :, None, :, None, None].to(estimates[0].dtype)
    return torch.stack([share * one for share, one in zip(shares, estimates, strict=True)]).sum(0)


def travels(prompt: str) -> bool:
    """Return whether a text holds several prompts."""
    return _BAR in prompt.split(" ")


def literal(text: str) -> str:
    """Return the text of one prompt, without escapes."""
    return " ".join(_BAR if word == _ESCAPED else word for word in text.split(" "))


def parsed(prompt: str, kind: Travel) -> PromptTravel:
    """Return the prompts of a text, one or several.

    Raises:
        ConfigError: if one is empty, or has a weight of 0 or one that travel over frames has no use for.
    """
    parts: list[list[str]] = [[]]
    for word in prompt.split(" "):
        if word == _BAR:
            parts.append([])
        else:
            parts[-1].append(word)
    if len(parts) == 1:
        return PromptTravel(kind, (literal(prompt),), (1.0,))
    texts, weights = [], []
    for words in parts:
        found = _WEIGHT.fullmatch(words[-1]) if words else None
        weights.append(float(found[1]) if found else 1.0)
        texts.append(literal(" ".join(words[:-1] if found else words)))
        if found and kind == "frames":
            raise ConfigError(f"{prompt!r}: weights such as {found[0]} are for --travel blend or time, not for frames")
    if not all(texts):
        raise ConfigError(rf"{prompt!r}: a prompt before or after | is empty; the word | itself is written \|")
    if min(weights) <= 0:
        raise ConfigError(f"{prompt!r}: the weight of a prompt must be above 0")
    return PromptTravel(kind, tuple(texts), tuple(weights))


def told_at_once(prompt: str, kind: Travel | None) -> str:
    """Return all prompts of a text as one, for later stages: which frame shows what is settled by then."""
    return prompt if kind is None else ", ".join(parsed(prompt, kind).prompts)


def checked_travel(name: str) -> Travel:
    """Return ``name`` if it is a kind of travel; raise a ConfigError that names the nearest if not."""
    for kind in TRAVELS:
        if name == kind:
            return kind
    raise ConfigError(f"unknown travel {name!r}.{did_you_mean(name, TRAVELS)} Kinds: {', '.join(TRAVELS)}.")
