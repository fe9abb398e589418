"""What an evaluation found: values with the protocol that makes them repeatable, and what they were computed from."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import vidiff
from vidiff.errors import DataError


@dataclass(frozen=True)
class Value:
    """One number, with all that is needed to compute and to judge it again."""

    metric: str  # "fvd", "psnr"
    protocol: str  # "i3d-k400,16f,stride 1,224 bilinear,n=512,ddof=1,ref=sha256:1f0c..."
    value: float
    better: Literal["lower", "higher", "reference"]  # reference: nearer to the value of real clips
    interval: tuple[float, float] | None = None  # 95%
    floor: float | None = None  # what real clips score against real clips at the same n, or a shuffled baseline
    floor_error: float = 0.0  # standard error of the floor, where it is a mean over clips
    per_clip: dict[str, float] = field(default_factory=dict)  # of each clip by its key, where the metric has one
    note: str = ""

    @property
    def name(self) -> str:
        """Return the metric with its protocol, `fvd[...]`: the only way in which a value may be quoted."""
        return f"{self.metric}[{self.protocol}]"


@dataclass(frozen=True)
class Clip:
    """One evaluated clip."""

    key: str
    path: str
    prompt: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Neighbor:
    """A generated clip and the nearest one of the training data."""

    key: str
    nearest: str  # key of the training clip
    nearest_path: str  # where its frames can be read; empty where they are in a shard
    distance: float
    flagged: bool  # nearer than real held-out clips are


@dataclass(frozen=True)
class Results:
    """One evaluated model or folder of clips."""

    label: str  # "runs/sprites, step 5000"
    values: tuple[Value, ...]
    clips: tuple[Clip, ...] = ()
    neighbors: tuple[Neighbor, ...] = ()
    excluded: tuple[tuple[str, str], ...] = ()  # (file, why) of clips that were left out by agreement
    step: int | None = None  # of training
    seconds_per_clip: float | None = None  # of generation
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data; a value that is not defined is None, for JSON knows no NaN."""
        values = [
            asdict(value) | {"value": value.value if math.isfinite(value.value) else None} for value in self.values
        ]
        return asdict(self) | {"values": values}


def versions() -> dict[str, str]:
    """Return the versions of all that numbers can depend on."""
    found = {"vidiff": vidiff.__version__, "torch": torch.__version__, "numpy": np.__version__}
    try:
        import cv2

        found["opencv"] = cv2.__version__
    except ImportError:
        pass
    return found


def read_results(path: Path) -> Results:
    """Return what `vidiff evaluate --json` wrote; raises DataError if the file holds something else."""
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict) and "comparison" in found:
            first, second = (path.with_stem(f"{path.stem}-{number}").name for number in (1, 2))
            raise DataError(f"{path}: is a comparison of two; their results are in {first} and {second} beside it")
        values = tuple(
            Value(
                **row
                | {
                    "value": math.nan if row["value"] is None else row["value"],
                    "interval": None if row["interval"] is None else tuple(row["interval"]),
                }
            )
            for row in found["values"]
        )
        return Results(
            **found
            | {
                "values": values,
                "clips": tuple(Clip(**row) for row in found["clips"]),
                "neighbors": tuple(Neighbor(**row) for row in found["neighbors"]),
                "excluded": tuple((name, why) for name, why in found["excluded"]),
            }
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: no results of vidiff evaluate: {error}") from error
