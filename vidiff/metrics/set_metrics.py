"""Metrics of whole sets: distances of their features, fidelity and coverage, copies of training clips, diversity."""

import math

import numpy as np
import torch

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.comparison import share_interval
from vidiff.metrics.extractors import Extractor
from vidiff.metrics.frechet import extrapolated, floor, interval
from vidiff.metrics.intervals import halving_interval
from vidiff.metrics.kernel import kernel_distance, mean_of_parts
from vidiff.metrics.manifold import Memorization, diversity, mean_scores, memorized, split_scores
from vidiff.metrics.measuring import Measuring, Rows, short_hash
from vidiff.metrics.pairwise import inception_score
from vidiff.metrics.results import Neighbor, Value

# What the field calls the distances of an extractor's features; our own networks' never bear a published name.
NAMES = {
    "i3d": ("fvd", "kvd"),
    "videomae": ("fvd-videomae", "kvd-videomae"),
    "inception": ("fid", "kid"),
    "dinov2": ("fd-dinov2", "kd-dinov2"),
    "clip": ("fd-clip", "kd-clip"),
    "vidiff-evaluator": ("fd-evaluator", "kd-evaluator"),
    "random-clips": ("fd-random-clips", "kd-random-clips"),
    "random-frames": ("fd-random-frames", "kd-random-frames"),
}
PUBLISHED = ("i3d", "videomae", "inception", "dinov2", "clip")
MANIFOLD = ("precision", "recall", "density", "coverage")
_NEIGHBORS = 5
_LEAST_MANIFOLD = 2 * (_NEIGHBORS + 1)  # clips whose halves have such neighbors
_DRAWS = 10  # of subsets of clips, which precision and the like are means over
_SUBSET = 1000  # rows of a kernel distance's subset, at most
_SPLITS = 10  # of an inception score, as published
_LEAST_INCEPTION = 2 * _SPLITS  # clips: a split of one always scores 1
_STUDENT = 2.262  # 97.5% quantile of Student's t with _SPLITS - 1 degrees of freedom
_WIDE = 512  # features beyond which a distance takes seconds
_QUANTILE = 0.01  # of held-out clips that would be called copies


def frechet_values(measuring: Measuring, extractor: Extractor, ddof: int = 1) -> list[Value]:
    """Return the Frechet distance to the real clips, with floor and interval, and where n allows its limit."""
    fake, real, how = _compared(measuring, extractor)
    seed, wide = measuring.seed, fake.values.shape[1] > _WIDE
    measured = interval(fake.values, real.values, seed, halvings=20 if wide else 100, ddof=ddof, group=fake.group)
    least = floor(real.values, len(fake.values), seed, splits=5 if wide else 20, ddof=ddof, group=real.group)
    # A floor at another n would be compared with the value all the same.
    enough = least.n == len(fake.values)
    clips = least.n // real.group
    notes = (
        [] if enough else [f"no floor: {2 * fake.clips} real clips would give one; at n={clips} it is {least.mean:.4g}"]
    )
    if len(fake.values) <= fake.values.shape[1]:
        notes.append(f"n is not above the {fake.values.shape[1]} features: compare with the floor only")
    protocol = measuring.protocol(*how, f"ddof={ddof}")
    metric = NAMES[extractor.name][0]
    found = [
        Value(
            *(metric, protocol, measured.distance, "lower"),
            (measured.low, measured.high),
            least.mean if enough else None,
            note="; ".join(notes),
        )
    ]
    if fake.group == 1 and not wide:
        try:
            limit = extrapolated(fake.values, real.values, seed, ddof=ddof)
        except ConfigError:  # too few for a line
            return found
        ends = (limit.distance - 1.96 * limit.standard_error, limit.distance + 1.96 * limit.standard_error)
        line = f"{protocol},line in 1/n from {limit.smallest} to {limit.largest}"
        found.append(Value(f"{metric}-limit", line, limit.distance, "lower", ends, 0.0))
    return found


def kernel_values(measuring: Measuring, extractor: Extractor) -> list[Value]:
    """Return the kernel distance to the real clips; its floor is 0 at any n.

    Subsets are of whole clips: frames of one clip are alike, and no sample of how far frames of two clips are apart.
    """
    fake, real, how = _compared(measuring, extractor)
    group = fake.group
    most = max(4, _SUBSET // group)
    size = min(most, fake.clips, real.clips)
    found = kernel_distance(fake.values, real.values, measuring.seed, subset_size=size, group=group)

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return mean_of_parts(a, b, most, group)

    low, high = halving_interval(statistic, fake.values, real.values, measuring.seed, group=group, halvings=20)
    reach = math.hypot((high - low) / 2, 1.96 * found.standard_error)
    subsets = f"subsets={found.subsets}x{size}" + (f" clips of {group}" if group > 1 else "")
    protocol = measuring.protocol(*how, "cubic", subsets)
    ends = (found.mean - reach, found.mean + reach)
    return [Value(NAMES[extractor.name][1], protocol, found.mean, "lower", ends, 0.0)]


def manifold_values(measuring: Measuring, extractor: Extractor) -> list[Value]:
    """Return precision, recall, density and coverage; the floor is what real clips have against other real clips.

    All depend on how many clips of each kind there are. Values and floors are therefore means over subsets of one size:
    as many clips as were generated, or half of the real ones, whichever is less.

    Raises:
        DataError: as `check_manifold`.
    """
    check_manifold(measuring)
    fake, real, how = _compared(measuring, extractor)
    a, b, seed = fake.of_clips(), real.of_clips(), measuring.seed
    size = min(len(a), len(b) // 2)

    def statistic(fakes: np.ndarray, reals: np.ndarray) -> np.ndarray:
        return mean_scores(reals, fakes, min(size, len(fakes), len(reals)), seed, _DRAWS, _NEIGHBORS)

    splits = split_scores(b, size, seed, _DRAWS, _NEIGHBORS)
    # A mean over all subsets of 2 k of m has at most 2 k / m of the variance of one (Hoeffding, 1948).
    errors = splits.std(0, ddof=1) * np.sqrt(2 * size / len(b))
    low, high = halving_interval(statistic, a, b, seed, halvings=20)
    columns = (statistic(a, b), (high - low) / 2, splits.mean(0), errors)
    protocol = measuring.protocol(*how, f"neighbors={_NEIGHBORS}", f"subsets={_DRAWS}x{size}")
    found = []
    for name, value, reach, least, error in zip(MANIFOLD, *(column.tolist() for column in columns), strict=True):
        share = name != "density"  # which has no upper end
        ends = (max(0.0, value - reach), value + reach)
        if share:  # near 1, halves agree more than the whole is certain
            least_low, least_high = share_interval(min(value, 1.0), size)
            ends = (min(ends[0], least_low), min(1.0, max(ends[1], least_high)))
        found.append(Value(name, protocol, value, "higher", ends, least, error))
    return found


def check_manifold(measuring: Measuring) -> None:
    """Raise a DataError if there are too few clips for precision, recall, density and coverage."""
    for kind, one in (("generated", measuring.generated), ("real", measuring.against())):
        if len(one) < _LEAST_MANIFOLD:
            raise DataError(
                f"precision, recall, density and coverage need {_LEAST_MANIFOLD} {kind} clips or more, so that those "
                f"of a half have {_NEIGHBORS} neighbors; {one.label} has {len(one)}: add clips"
            )


def inception_values(measuring: Measuring, extractor: Extractor) -> list[Value]:
    """Return the inception score of a classifier's logits; raises as `check_inception`."""
    check_inception(measuring)
    rows = measuring.features(measuring.generated, extractor)
    found = inception_score(torch.from_numpy(rows.values), _SPLITS, measuring.seed)
    reach = _STUDENT * found.std / _SPLITS**0.5
    protocol = measuring.protocol(*_how(extractor), f"splits={_SPLITS}", real=False)
    return [Value("inception-score", protocol, found.mean, "higher", (found.mean - reach, found.mean + reach))]


def check_inception(measuring: Measuring) -> None:
    """Raise a DataError if there are too few clips for an inception score."""
    one = measuring.generated
    if len(one) < _LEAST_INCEPTION:
        raise DataError(
            f"an inception score needs {_LEAST_INCEPTION} clips or more, two in each of {_SPLITS} splits, since one "
            f"alone always scores 1; {one.label} has {len(one)}: generate more"
        )


def memorization(measuring: Measuring, extractor: Extractor) -> tuple[list[Value], tuple[Neighbor, ...]]:
    """Return the share of clips that are nearer to a training clip than held-out clips are, and each one's neighbor.

    The real clips are the held-out ones, which no model may have been trained on.
    """
    if measuring.train is None:
        raise ConfigError("memorization looks for copies of training clips: give --train")
    held_out = measuring.against()
    samples, trained, real = (
        measuring.features(one, extractor).of_clips() for one in (measuring.generated, measuring.train, held_out)
    )
    quantile = max(_QUANTILE, 1 / (len(held_out) + 1))
    found = memorized(samples, trained, real, quantile)
    train = measuring.train.clips
    neighbors = tuple(
        Neighbor(clip.key, train[near].key, train[near].path, float(distance), bool(flagged))
        for clip, near, distance, flagged in zip(
            measuring.generated.clips, found.nearest.index, found.nearest.distance, found.flagged, strict=True
        )
    )
    return [_flagged(measuring, extractor, found, quantile)], neighbors


def _flagged(measuring: Measuring, extractor: Extractor, found: Memorization, quantile: float) -> Value:
    assert measuring.train is not None
    protocol = measuring.protocol(
        *_how(extractor),
        f"threshold={found.threshold:.4g} at {quantile:.2g} of held-out",
        f"train={len(measuring.train)}@sha256:{measuring.train.digest[:12]}",
    )
    return measuring.mean_value("memorized", protocol, found.flagged.astype(float), "lower", quantile, share=True)


def diversity_values(measuring: Measuring, extractor: Extractor) -> list[Value]:
    """Return how far apart clips of one prompt are, as a share of how far apart any two clips are."""
    rows = measuring.features(measuring.generated, extractor)
    found = diversity(rows.of_clips(), measuring.prompts())
    protocol = measuring.protocol(*_how(extractor), "within / overall", real=False)
    return [Value("diversity", protocol, found.ratio, "higher")]


def has_seeds(measuring: Measuring) -> bool:
    """Return whether a prompt has two clips or more."""
    return len(set(measuring.prompts().tolist())) < len(measuring.generated)


def _compared(measuring: Measuring, extractor: Extractor) -> tuple[Rows, Rows, list[str]]:
    """Return the features of generated and real clips, and how they were made.

    Those of our own networks are standardized by the real clips, or a few of them would outweigh all others.
    """
    real = measuring.features(measuring.against(), extractor)
    fake = measuring.features(measuring.generated, extractor)
    if fake.group != real.group:  # frames would count for less in one set than in the other
        raise DataError(
            f"{measuring.generated.label}: {extractor.name} reads {fake.group} frames of each clip, but {real.group} "
            f"of the real ones; give --frames {min(fake.group, real.group)}"
        )
    how = _how(extractor)
    if extractor.name in PUBLISHED:
        return fake, real, how
    mean, std = (statistic(real.values, 0, dtype=np.float64) for statistic in (np.mean, np.std))
    std = np.where(std > 1e-6 * std.max(), std, np.inf)  # what never varies says nothing
    standardized = [Rows((rows.values - mean) / std, rows.group) for rows in (fake, real)]
    return standardized[0], standardized[1], [*how, "standardized by ref"]


def _how(extractor: Extractor) -> list[str]:
    return [f"{extractor.name}@{short_hash(extractor.version)}", str(extractor.preprocess)]
