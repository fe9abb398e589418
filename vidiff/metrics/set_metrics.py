"""Metrics of whole sets: distances of their features, fidelity and coverage, copies of training clips, diversity."""

import numpy as np

from vidiff.errors import ConfigError
from vidiff.metrics.extractors import Extractor
from vidiff.metrics.frechet import extrapolated, floor, interval
from vidiff.metrics.intervals import halving_interval
from vidiff.metrics.kernel import kernel_distance, squared_mmd
from vidiff.metrics.manifold import Memorization, diversity, manifold_scores, memorized
from vidiff.metrics.measuring import Measuring, Rows, short_hash
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
_SUBSET = 1000  # rows of a kernel distance's subset, at most
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
    """Return the kernel distance to the real clips; its floor is 0 at any n."""
    fake, real, how = _compared(measuring, extractor)
    size = min(_SUBSET, len(fake.values), len(real.values))
    found = kernel_distance(fake.values, real.values, measuring.seed, subset_size=size)

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return squared_mmd(a[:_SUBSET], b[:_SUBSET])

    low, high = halving_interval(statistic, fake.values, real.values, measuring.seed, group=fake.group, halvings=20)
    reach = (high - low) / 2
    protocol = measuring.protocol(*how, "cubic", f"subsets={found.subsets}x{found.subset_size}")
    ends = (found.mean - reach, found.mean + reach)
    return [Value(NAMES[extractor.name][1], protocol, found.mean, "lower", ends, 0.0)]


def manifold_values(measuring: Measuring, extractor: Extractor) -> list[Value]:
    """Return precision, recall, density and coverage; the floor is what real clips have against other real clips."""
    fake, real, how = _compared(measuring, extractor)
    a, b = fake.of_clips(), real.of_clips()
    order = np.random.default_rng(measuring.seed).permutation(len(b))
    half = len(b) // 2
    scores = manifold_scores(b, a, _NEIGHBORS)
    apart = manifold_scores(b[order[:half]], b[order[half:]], _NEIGHBORS)
    found = []
    for name in MANIFOLD:

        def statistic(fakes: np.ndarray, reals: np.ndarray, name: str = name) -> float:
            value: float = getattr(manifold_scores(reals, fakes, _NEIGHBORS), name)
            return value

        low, high = halving_interval(statistic, a, b, measuring.seed, halvings=10)
        value, reach, most = getattr(scores, name), (high - low) / 2, np.inf if name == "density" else 1.0
        protocol = measuring.protocol(*how, f"k={_NEIGHBORS}")
        ends = (max(0.0, value - reach), float(min(most, value + reach)))  # all but the density are shares
        found.append(Value(name, protocol, value, "higher", ends, getattr(apart, name)))
    return found


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
    return measuring.mean_value("memorized", protocol, found.flagged.astype(float), "lower", quantile)


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
    how = _how(extractor)
    if extractor.name in PUBLISHED:
        return fake, real, how
    mean, std = real.values.mean(0), real.values.std(0)
    std = np.where(std > 1e-6 * std.max(), std, np.inf)  # what never varies says nothing
    standardized = [Rows((rows.values - mean) / std, rows.group) for rows in (fake, real)]
    return standardized[0], standardized[1], [*how, "standardized by ref"]


def _how(extractor: Extractor) -> list[str]:
    return [f"{extractor.name}@{short_hash(extractor.version)}", str(extractor.preprocess)]
