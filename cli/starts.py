"""What the clips of one ``generate`` start from: seeds in a row, variations, arcs, or the noise of a clip."""

from dataclasses import dataclass
from pathlib import Path

from vidiff.errors import ConfigError
from vidiff.inverting import NoiseFile, noise_file
from vidiff.sampling.interpolation import Arc

_STRENGTH = 0.3  # of a variation, by default


@dataclass(frozen=True)
class Ways:
    """What the command says of starts besides ``--seed`` and ``--num``."""

    to_seed: int | None = None
    to_prompt: str | None = None
    vary: int | None = None
    strength: float | None = None
    noise: Path | None = None

    @property
    def options(self) -> list[str]:
        """Return the options that were given."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]


SEEDS = Ways()  # alone


@dataclass(frozen=True)
class Start:
    """What one clip starts from."""

    name: str  # tells its file from those of the others
    seed: int
    arc: Arc | None = None
    noise: NoiseFile | None = None


def starts(seed: int | None, num: int, ways: Ways) -> list[Start]:
    """Return what each clip of one prompt starts from.

    Raises:
        ConfigError: for options that do not go together, or a file of noise that is not there.
    """
    first = seed or 0
    if ways.noise is not None:
        _refuse("--noise makes one clip, of the noise alone", "--noise", seed, num, ways)
        return [Start(ways.noise.stem, first, noise=noise_file(ways.noise))]
    if ways.vary is not None:
        strength = _STRENGTH if ways.strength is None else ways.strength
        _refuse("--vary makes its own clips out of one", "--vary", None, num, Ways(ways.to_seed, ways.to_prompt))
        others = range(first + 1, first + 1 + ways.vary)
        return [Start(f"{first}-vary-{other}", first, Arc(strength, to_seed=other)) for other in others]
    if ways.strength is not None:
        raise ConfigError("--strength says how far variations go; say with --vary how many to make")
    if ways.to_seed is not None or ways.to_prompt is not None:
        if num < 2:
            raise ConfigError(f"{ways.options[0]} leads from one clip to another; say with --num how many, at least 2")
        arcs = [Arc(i / (num - 1), ways.to_seed, ways.to_prompt) for i in range(num)]
        return [Start(f"{first}-arc-{i}", first, arc) for i, arc in enumerate(arcs)]
    return [Start(str(first + i), first + i) for i in range(num)]


def _refuse(why: str, own: str, seed: int | None, num: int, ways: Ways) -> None:
    """Raise a ConfigError if more was given than the option ``own``."""
    given = [f"--seed {seed}"] if seed is not None else []
    given += [f"--num {num}"] if num > 1 else []
    given += [option for option in ways.options if option != own]
    if given:
        raise ConfigError(f"{why}; leave out {' and '.join(given)}")
