"""Metrics that each clip has by itself, or with its prompt, or with the real clip of the same prompt."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vidiff.errors import ConfigError, DataError
from vidiff.metrics.clip_alignment import text_alignment
from vidiff.metrics.clip_set import ClipSet, SetClip
from vidiff.metrics.extractors import Extractor
from vidiff.metrics.flow import DIS, FlowEstimator
from vidiff.metrics.measuring import Measuring, short_hash
from vidiff.metrics.pairwise import LPIPS, psnr, ssim
from vidiff.metrics.preprocess import Preprocess
from vidiff.metrics.results import Value
from vidiff.metrics.temporal import feature_scores, temporal_scores, wasserstein_distance

Better = Literal["lower", "higher", "reference"]

_ALL = Preprocess(frames=None)  # every frame, which flow is found between as they are

# Of each temporal score: its place in a row, and which way is better. What real clips have is the floor.
TEMPORAL: dict[str, tuple[int, Better]] = {
    "warping-error": (0, "lower"),
    "motion": (2, "reference"),
    "flicker": (3, "reference"),
    "residual-flicker": (4, "lower"),
    "dynamic-degree": (5, "reference"),
}
FEATURES: dict[str, Better] = {"frame-similarity": "reference", "identity-drift": "reference"}


@dataclass(frozen=True)
class TemporalRows:
    """Temporal scores as rows of features, so that they are kept and found again like those. An `Extractor`."""

    fps: float
    estimator: FlowEstimator = DIS
    preprocess: Preprocess = _ALL
    name: str = "temporal"
    dim: int = 6
    per_frame: bool = False

    @property
    def version(self) -> str:
        return f"{self.estimator.flow_name},{self.fps:g}"

    def __call__(self, clips: Iterable[Tensor]) -> Tensor:
        """Return float32 (N, 6), the fields of `TemporalScores` in their order, of clips uint8 (F, H, W, 3).

        Raises:
            DataError: as `temporal_scores`.
        """
        rows = []
        for clip in clips:
            found = temporal_scores(clip, self.fps, self.estimator)
            scores = (found.warping_error, found.followed, found.motion, found.flicker, found.residual_flicker)
            rows.append([*scores, float(found.dynamic)])
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, self.dim)


def temporal_values(measuring: Measuring, wanted: Sequence[str], estimator: FlowEstimator = DIS) -> list[Value]:
    """Return warping error, motion, flicker and dynamic degree, each beside that of the real clips."""
    rows = _temporal_rows(measuring, measuring.generated, estimator)
    real = None if measuring.real is None else _temporal_rows(measuring, measuring.real, estimator)
    protocol = measuring.protocol(estimator.flow_name, measuring.generated.shape)
    found = []
    for name in wanted:
        column, better = TEMPORAL[name]
        floor = None if real is None else (real[:, column], measuring.against())
        note = ""
        if name == "warping-error":
            note = f"over {rows[:, 1].mean():.0%} of all pixels; a frozen clip has 0: look at motion, too"
        if name == "motion" and real is not None:
            apart = wasserstein_distance(torch.from_numpy(rows[:, column]), torch.from_numpy(real[:, column]))
            note = f"widths or heights a second; 1-D Wasserstein distance to the real clips' {apart:.4g}"
        share = name == "dynamic-degree"
        found.append(measuring.mean_value(name, protocol, rows[:, column], better, floor, note, share))
    return found


def _temporal_rows(measuring: Measuring, one: ClipSet, estimator: FlowEstimator) -> np.ndarray:
    """Return the temporal scores of each clip at its own rate, (N, 6)."""
    rates = np.array([clip.info.fps for clip in one.clips])
    found = np.empty((len(one), TemporalRows.dim))
    for rate in np.unique(rates):
        part = replace(one, clips=tuple(clip for clip in one.clips if clip.info.fps == rate))
        found[rates == rate] = measuring.features(part, TemporalRows(float(rate), estimator)).values
    return found


def feature_values(measuring: Measuring, extractor: Extractor, wanted: Sequence[str]) -> list[Value]:
    """Return how alike neighboring frames are, and how far the last is from the first, in a network's features."""
    protocol = measuring.protocol(f"{extractor.name}@{short_hash(extractor.version)}", str(extractor.preprocess))
    scores = _feature_scores(measuring, measuring.generated, extractor)
    real = None if measuring.real is None else _feature_scores(measuring, measuring.real, extractor)
    columns = {"frame-similarity": 0, "identity-drift": 1}
    return [
        measuring.mean_value(
            *(name, protocol, scores[:, columns[name]], FEATURES[name]),
            None if real is None else (real[:, columns[name]], measuring.against()),
        )
        for name in wanted
    ]


def _feature_scores(measuring: Measuring, one: ClipSet, extractor: Extractor) -> np.ndarray:
    """Return similarity and drift of each clip, (N, 2)."""
    rows = measuring.features(one, extractor)
    clips = torch.from_numpy(rows.values).unflatten(0, (rows.clips, rows.group))
    found = map(feature_scores, clips)
    return np.array([(scores.similarity, scores.drift) for scores in found])


@dataclass(frozen=True)
class Aligner:
    """Clips and prompts in one space."""

    extractor: Extractor  # of rows, one or several a clip
    encode: Callable[[Sequence[str]], Tensor]  # prompts to (N, E)
    place: Callable[[Tensor], Tensor] = lambda rows: rows  # rows (F, D) to where they lie among prompts, (F, E)


def alignment_value(measuring: Measuring, metric: str, aligner: Aligner) -> Value:
    """Return how near clips lie to their prompts; the floor is how near they lie to the prompts of others.

    Raises:
        DataError: if a clip has no prompt.
    """
    extractor = aligner.extractor
    clips = measuring.generated.clips
    check_prompts(measuring.generated)
    rows = measuring.features(measuring.generated, extractor)
    frames = torch.from_numpy(rows.values).unflatten(0, (rows.clips, rows.group))
    placed = (aligner.place(rows.float()) for rows in frames)
    found = text_alignment(placed, [clip.prompt for clip in clips], aligner.encode, seed=measuring.seed)
    how = (f"{extractor.name}@{short_hash(extractor.version)}", str(extractor.preprocess), found.name)
    protocol = measuring.protocol(*how, real=False)
    note = "" if found.shuffled is not None else "no baseline: over half of the clips share one prompt"
    shuffled = None if found.shuffled is None else (found.shuffled.numpy(), measuring.generated)
    return measuring.mean_value(metric, protocol, found.own.numpy(), "higher", shuffled, note)


def check_prompts(one: ClipSet) -> None:
    """Raise a DataError, with an example, unless every clip has a prompt."""
    silent = [clip.key for clip in one.clips if not clip.prompt]
    if silent:
        raise DataError(
            f"{one.label}: {len(silent)} clips have no prompt, such as {silent[0]}; put it into a text file beside the "
            "clip, or list all in metadata.jsonl"
        )


def pairwise_values(measuring: Measuring, wanted: Sequence[str], lpips: LPIPS | None, weights: str) -> list[Value]:
    """Return how near each clip is to the real one of the same name or prompt.

    Args:
        measuring: the evaluation.
        wanted: of psnr, ssim and lpips.
        lpips: for the last.
        weights: its hash, for the protocol line.

    Raises:
        DataError: if a clip has no partner of its shape.
    """
    measures: dict[str, tuple[Callable[[Tensor, Tensor], float], Better]] = {
        "psnr": (psnr, "higher"),
        "ssim": (ssim, "higher"),
    }
    if lpips is not None:
        measures["lpips"] = (lpips, "lower")
    elif "lpips" in wanted:
        raise ConfigError("lpips needs its weights: --weights lpips=FILE.safetensors (see docs/evaluation.md)")
    partners = partners_of(measuring.generated, measuring.against())
    scores: dict[str, list[float]] = {name: [] for name in wanted}
    with measuring.progress("comparing pairs", len(partners)) as on_clip:
        for done, (clip, partner) in enumerate(zip(measuring.generated.clips, partners, strict=True), 1):
            frames, reference = clip.frames(), partner.frames()
            for name in wanted:
                scores[name].append(measures[name][0](frames, reference))
            on_clip(done)
    how = {"lpips": (f"weights={weights}",)}
    return [
        measuring.mean_value(
            *(name, measuring.protocol(measuring.generated.shape, *how.get(name, ())), np.array(scores[name])),
            measures[name][1],
        )
        for name in wanted
    ]


def check_pairs(generated: ClipSet, real: ClipSet) -> None:
    """Raise a DataError, with an example, unless every generated clip has a real partner of its frames and size."""
    for clip, partner in zip(generated.clips, partners_of(generated, real), strict=True):
        ours, other = (f"{one.frames} frames of {one.width}x{one.height}" for one in (clip.info, partner.info))
        if ours != other:
            raise DataError(
                f"{generated.label}, {clip.key}: {ours}, but {partner.key} of {real.label}, its partner, has {other}; "
                "pairs are compared pixel by pixel: bring the real clips to that size (ffmpeg)"
            )


def partners_of(generated: ClipSet, real: ClipSet) -> list[SetClip]:
    """Return for each generated clip the real one of its prompt.

    Where one of the two has no prompt, or several real clips have the same, it is the real clip of its name.

    Raises:
        DataError: if there is none, or several.
    """
    by_prompt: dict[str, list[SetClip]] = {}
    for clip in real.clips:
        by_prompt.setdefault(clip.prompt, []).append(clip)
    by_key = {clip.key: clip for clip in real.clips}
    found = []
    for clip in generated.clips:
        same = by_prompt.get(clip.prompt, []) if clip.prompt else []
        partner = same[0] if len(same) == 1 else by_key.get(clip.key)
        if partner is None or not _may_equal(clip, partner):
            why = f"{len(same)} real clips have its prompt" if same else "no real clip has its prompt or its name"
            if partner is not None:
                why += ", and the one of its name has another"
            raise DataError(f"{generated.label}, {clip.key}: {why}, so that nothing tells which one it should equal")
        found.append(partner)
    return found


def _may_equal(clip: SetClip, partner: SetClip) -> bool:
    """Return whether no prompt speaks against a real clip; some have other captions beside the one that they go by."""
    others = partner.row.get("alt_captions")
    said = ("", partner.prompt, *(others if isinstance(others, list) else ()))
    return not partner.prompt or clip.prompt in said
