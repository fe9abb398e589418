"""Errors that a user can cause. Each message says what was wrong, where, and what to do about it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The base of all errors that the command line prints as one ``error: ...`` line and exit code 2."""


class ConfigError(UserError):
    """A setting is missing, unknown, of the wrong type, or does not fit another one."""


class DataError(UserError):
    """A clip, caption or shard cannot be read, or is not what its manifest says."""


class CheckpointError(UserError):
    """Weights or a checkpoint are damaged, incomplete, or do not fit the config."""


class NumericalError(UserError):
    """A loss, a weight or a frame is not finite, or a clip shows nothing at all."""


class ResourceError(UserError):
    """Memory or disk ran out, or a file cannot be written."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean X?`` for the choice nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {near[0]}?" if near else ""
