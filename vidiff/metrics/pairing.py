"""Which clips of two models belong together."""

from collections.abc import Sequence

from vidiff.metrics.results import Clip


def paired(a: Sequence[Clip], b: Sequence[Clip]) -> list[tuple[Clip, Clip]]:
    """Return the clips of ``a`` and ``b`` that are compared with one another.

    Those of one prompt and seed; where the clips of a prompt have no seed in common, such as those of a tool that
    records none, in their order; and where no prompt is shared, those of one key, unless their prompts differ.
    """
    mine, others = _by_prompt(a), _by_prompt(b)
    shared = [prompt for prompt in mine if prompt in others]
    if not shared:
        by_key = {clip.key: clip for clip in b}
        pairs = [(clip, by_key[clip.key]) for clip in a if clip.key in by_key]
        return [(one, two) for one, two in pairs if not one.prompt or not two.prompt]
    return [pair for prompt in shared for pair in _of_prompt(mine[prompt], others[prompt])]


def _of_prompt(mine: Sequence[Clip], others: Sequence[Clip]) -> list[tuple[Clip, Clip]]:
    pairs = []
    for seed in dict.fromkeys(clip.seed for clip in mine if clip.seed is not None):
        alike = ([clip for clip in clips if clip.seed == seed] for clips in (mine, others))
        pairs += list(zip(*alike, strict=False))  # a folder may hold several, of other settings
    return pairs or list(zip(mine, others, strict=False))


def _by_prompt(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    found: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.prompt:
            found.setdefault(clip.prompt, []).append(clip)
    return found
