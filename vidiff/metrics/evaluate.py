"""Which metrics there are, which can be measured on what is given, and measuring them in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from vidiff.errors import ConfigError, DataError, did_you_mean
from vidiff.metrics.clip_metrics import (
    FEATURES,
    TEMPORAL,
    Aligner,
    alignment_value,
    check_pairs,
    check_prompts,
    feature_values,
    pairwise_values,
    temporal_values,
)
from vidiff.metrics.clip_set import ClipSet
from vidiff.metrics.extractors import Extractor
from vidiff.metrics.flow import DIS, FlowEstimator
from vidiff.metrics.following import following_values, missing_for_following, questions_of
from vidiff.metrics.measuring import Measuring, check_read
from vidiff.metrics.model_likelihood import ModelDensity, likelihood_values, missing_for_likelihood
from vidiff.metrics.pairwise import LPIPS
from vidiff.metrics.results import Neighbor, Value
from vidiff.metrics.set_metrics import (
    MANIFOLD,
    NAMES,
    check_inception,
    check_manifold,
    diversity_values,
    frechet_values,
    has_seeds,
    inception_values,
    kernel_values,
    manifold_values,
    memorization,
)


@dataclass(frozen=True)
class Tools:
    """The networks of an evaluation, by kind; what is not there cannot be measured with."""

    extractors: dict[str, Extractor] = field(default_factory=dict)  # see `set_metrics.NAMES`
    aligners: dict[str, Aligner] = field(default_factory=dict)  # by the metric
    lpips: LPIPS | None = None
    lpips_hash: str = ""
    i3d_ddof: int = 0  # StyleGAN-V and cd-fvd divide by N, the original FVD by N - 1
    flow: FlowEstimator = DIS
    density: ModelDensity | None = None  # the model that is measured, where there is one


@dataclass(frozen=True)
class Metric:
    """One name that can be asked for."""

    name: str
    what: str
    missing: Callable[[Measuring, Tools], str]  # why it cannot be measured, or nothing; may name a clip by a DataError
    default: bool = True  # whether it is measured unasked where it can be


def _weights(kind: str) -> Callable[[Measuring, Tools], str]:
    """Return what says that a distance needs a network and real clips."""

    def missing(measuring: Measuring, tools: Tools) -> str:
        if kind not in tools.extractors:
            return _MISSING.get(kind, f"it needs weights: --weights {kind}=PATH")
        if measuring.real is not None:
            check_read((measuring.generated, measuring.real), tools.extractors[kind], _HALVED)
        return _data(measuring, tools)

    return missing


_HALVED = 4  # clips, whose halves are two sets of two, each with a covariance
_MISSING = {
    "i3d": "it needs --weights i3d=i3d_torchscript.pt@SHA256, the TorchScript file of StyleGAN-V",
    "inception": "it needs --weights inception=inception-2015-12-05.pt@SHA256, the TorchScript file of StyleGAN2-ADA",
    "videomae": "it needs --weights videomae=FOLDER, such as MCG-NJU/videomae-large-finetuned-kinetics",
    "dinov2": "it needs --weights dinov2=FOLDER, such as facebook/dinov2-large",
    "clip": "it needs --weights clip=FOLDER, such as openai/clip-vit-large-patch14",
    "vidiff-evaluator": "the bundled evaluator is not there; train it with: vidiff train evaluator",
}


def _data(measuring: Measuring, tools: Tools) -> str:
    return "" if measuring.real is not None else "it compares with real clips: give --data"


def _flow(measuring: Measuring, tools: Tools) -> str:
    if tools.flow != DIS or find_spec("cv2") is not None:
        return ""
    return "it needs OpenCV: pip install 'vidiff[eval]'; or --weights raft=FILE@SHA256"


def _features(measuring: Measuring, tools: Tools) -> str:
    extractor = _of_frames(tools)
    if extractor is None:
        return "no network is there that sees frames"
    check_read((measuring.generated, measuring.real), extractor)
    return ""


def _aligner(metric: str, kind: str) -> Callable[[Measuring, Tools], str]:
    def missing(measuring: Measuring, tools: Tools) -> str:
        if metric not in tools.aligners:
            return _MISSING[kind]
        if not any(clip.prompt for clip in measuring.generated.clips):
            return "no clip has a prompt"
        check_prompts(measuring.generated)
        check_read((measuring.generated,), tools.aligners[metric].extractor)
        return ""

    return missing


def _judged(measuring: Measuring, tools: Tools) -> str:
    why = missing_for_following(measuring)
    if not why:
        questions_of(measuring)
    elif measuring.real is not None and any("attributes" in clip.row for clip in measuring.real.clips):
        raise DataError(why)
    return why


def _train(measuring: Measuring, tools: Tools) -> str:
    if measuring.train is None:
        return "it looks for copies of training clips: give --train"
    return _data(measuring, tools) or _seen((measuring.generated, measuring.real, measuring.train), tools)


def _seen(sets: Sequence[ClipSet | None], tools: Tools) -> str:
    extractor = _of_clips(tools)
    if extractor is None:
        return "no network is there that tells clips apart"
    check_read(sets, extractor)
    return ""


def _seeds(measuring: Measuring, tools: Tools) -> str:
    if not has_seeds(measuring):
        return "every prompt has one clip; generate several seeds of each"
    return _seen((measuring.generated,), tools)


def _pairs_up(measuring: Measuring, tools: Tools) -> str:
    if measuring.real is not None:
        check_pairs(measuring.generated, measuring.real)
    return _data(measuring, tools)


def _lpips(measuring: Measuring, tools: Tools) -> str:
    return "it needs --weights lpips=FILE.safetensors" if tools.lpips is None else _pairs_up(measuring, tools)


def _manifold(measuring: Measuring, tools: Tools) -> str:
    why = _weights("vidiff-evaluator")(measuring, tools)
    if not why:
        check_manifold(measuring)
    return why


def _likelihood(measuring: Measuring, tools: Tools) -> str:
    return missing_for_likelihood(measuring, tools.density)


def _classifier(measuring: Measuring, tools: Tools) -> str:
    if "i3d" not in tools.extractors:
        return _MISSING["i3d"]
    check_inception(measuring)
    return ""


_KINDS = {  # what distances are taken in, and how their networks see a set
    "vidiff-evaluator": "clips in the bundled evaluator's features",
    "random-clips": "clips in features of random filters, which see blur and noise",
    "random-frames": "frames in features of random filters",
    "i3d": "clips in I3D's logits",
    "videomae": "clips in VideoMAE's features",
    "inception": "frames in Inception v3's features",
    "dinov2": "frames in DINOv2's features",
    "clip": "frames in CLIP's features",
}
_TRAITS = {
    "warping-error": "what the flow from frame to frame leaves unexplained",
    "motion": "the mean speed of pixels, beside that of real clips",
    "flicker": "the mean change from frame to frame",
    "residual-flicker": "what alternates from frame to frame along the motion",
    "dynamic-degree": "the share of clips that move",
    "frame-similarity": "how alike neighboring frames are in features",
    "identity-drift": "how far the last frame is from the first in features",
}

_RANDOM = ("random-clips", "random-frames")
_KERNEL = "kernel distance of"
_NEXT_TO = "against the real clip of the same prompt or name"
_ALIGNED = "clips and prompts in the bundled evaluator"

LIKELIHOOD = "likelihood"

METRICS: tuple[Metric, ...] = (
    *(Metric(NAMES[kind][0], f"Frechet distance of {what}", _weights(kind)) for kind, what in _KINDS.items()),
    *(
        Metric(NAMES[kind][1], f"{_KERNEL} {what}", _weights(kind), kind not in _RANDOM)
        for kind, what in _KINDS.items()
    ),
    *(Metric(name, "of clips in the bundled evaluator's features", _manifold) for name in MANIFOLD),
    Metric("alignment-evaluator", _ALIGNED, _aligner("alignment-evaluator", "vidiff-evaluator")),
    Metric("clipsim", "frames and prompts in CLIP", _aligner("clipsim", "clip")),
    Metric("following", "what captions state, judged by rendering the alternatives", _judged),
    *(Metric(name, what, _flow if name in TEMPORAL else _features) for name, what in _TRAITS.items()),
    *(Metric(name, _NEXT_TO, _pairs_up, False) for name in ("psnr", "ssim")),
    Metric("lpips", _NEXT_TO, _lpips, False),
    Metric("memorized", "the share of clips nearer to a training clip than held-out clips are", _train),
    Metric("diversity", "how far apart the clips of one prompt are", _seeds),
    Metric("inception-score", "of I3D's predictions", _classifier, False),
    Metric(LIKELIHOOD, "bits per dimension of real clips under the model, given captions", _likelihood, False),
)


def chosen(measuring: Measuring, tools: Tools, wanted: Sequence[str] | None) -> list[str]:
    """Return the metrics to measure, in the order of `METRICS`.

    Args:
        measuring: the evaluation.
        tools: its networks.
        wanted: names; None is all that can be measured and are measured unasked.

    Raises:
        ConfigError: if a name is unknown, or cannot be measured; the message says what is missing.
        DataError: if a metric that was asked for finds not all that it takes in the clips. Unasked, a note says so.
    """
    known = {metric.name: metric for metric in METRICS}
    if wanted is None:
        return _measurable(measuring, tools)
    check_names(wanted)
    for name in wanted:
        try:
            why = known[name].missing(measuring, tools)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        if why:
            raise ConfigError(f"{name}: {why}")
    return [name for name in known if name in wanted]


def check_names(names: Sequence[str], option: str = "--metrics") -> None:
    """Raise a ConfigError if a metric is unknown."""
    known = [metric.name for metric in METRICS]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"{option} {name}: no such metric.{hint} There are: {', '.join(known)}.")


def _measurable(measuring: Measuring, tools: Tools) -> list[str]:
    """Return the metrics that are measured unasked and can be; a note tells of those that clips stand in the way of."""
    found: list[str] = []
    left_out: dict[str, list[str]] = {}
    for metric in METRICS:
        try:
            if metric.default and not metric.missing(measuring, tools):
                found.append(metric.name)
        except DataError as error:
            left_out.setdefault(str(error), []).append(metric.name)
    for why, names in left_out.items():
        measuring.note(f"left out: {', '.join(names)}: {why}")
    return found


def shared(names: Sequence[str]) -> list[str]:
    """Return the metrics whose features several processes compute together; one alone does all the rest."""
    alone = ("following", "psnr", "ssim", "lpips", LIKELIHOOD)
    return [name for name in names if name not in alone]


def evaluate(measuring: Measuring, tools: Tools, names: Sequence[str]) -> tuple[list[Value], tuple[Neighbor, ...]]:
    """Return the values of the metrics ``names``, see `chosen`, and the nearest training clips.

    Raises:
        DataError: if clips are too few, too short or unreadable for a metric; the message names it.
        ConfigError: if the options of a metric do not fit.
    """
    values: list[Value] = []
    neighbors: tuple[Neighbor, ...] = ()
    asked = set(names)
    for measure in (_distances, _traits, _texts, _pairs, _scores, _bits):
        values += measure(measuring, tools, asked)
    seeing = _of_clips(tools)
    if seeing is not None and "memorized" in asked:
        found, neighbors = memorization(measuring, seeing)
        values += found
    if seeing is not None and "diversity" in asked:
        values += diversity_values(measuring, seeing)
    order = {name: place for place, name in enumerate(metric.name for metric in METRICS)}
    return sorted(values, key=lambda value: order.get(value.metric, order.get(asked_name(value.metric), 0))), neighbors


def asked_name(metric: str) -> str:
    """Return the name that a value such as ``fd-evaluator-limit`` or ``following-color`` was asked for by."""
    whole = next((name for name in ("following", LIKELIHOOD) if metric.startswith(name)), None)
    return whole or metric.removesuffix("-limit")


def _of_clips(tools: Tools) -> Extractor | None:
    """Return the network whose features tell clips apart: ours, or a published one, or random filters."""
    kinds = ("vidiff-evaluator", "videomae", "i3d", "random-clips")
    return next((tools.extractors[kind] for kind in kinds if kind in tools.extractors), None)


def _of_frames(tools: Tools) -> Extractor | None:
    """Return the network whose features tell frames apart: a published one, or random filters."""
    kinds = ("dinov2", "clip", "random-frames")
    return next((tools.extractors[kind] for kind in kinds if kind in tools.extractors), None)


def _distances(measuring: Measuring, tools: Tools, asked: set[str]) -> list[Value]:
    values: list[Value] = []
    for kind, (frechet, kernel) in NAMES.items():
        if frechet in asked:
            values += frechet_values(measuring, tools.extractors[kind], tools.i3d_ddof if kind == "i3d" else 1)
        if kernel in asked:
            values += kernel_values(measuring, tools.extractors[kind])
    if asked & set(MANIFOLD):
        found = manifold_values(measuring, tools.extractors["vidiff-evaluator"])
        values += [value for value in found if value.metric in asked]
    return values


def _traits(measuring: Measuring, tools: Tools, asked: set[str]) -> list[Value]:
    values: list[Value] = []
    if asked & TEMPORAL.keys():
        values += temporal_values(measuring, [name for name in TEMPORAL if name in asked], tools.flow)
    extractor = _of_frames(tools)
    if extractor is not None and asked & FEATURES.keys():
        values += feature_values(measuring, extractor, [name for name in FEATURES if name in asked])
    return values


def _texts(measuring: Measuring, tools: Tools, asked: set[str]) -> list[Value]:
    values = [
        alignment_value(measuring, metric, aligner) for metric, aligner in tools.aligners.items() if metric in asked
    ]
    return values + (following_values(measuring) if "following" in asked else [])


def _pairs(measuring: Measuring, tools: Tools, asked: set[str]) -> list[Value]:
    wanted = [name for name in ("psnr", "ssim", "lpips") if name in asked]
    return pairwise_values(measuring, wanted, tools.lpips, tools.lpips_hash) if wanted else []


def _scores(measuring: Measuring, tools: Tools, asked: set[str]) -> list[Value]:
    return inception_values(measuring, tools.extractors["i3d"]) if "inception-score" in asked else []


def _bits(measuring: Measuring, tools: Tools, asked: set[str]) -> list[Value]:
    if LIKELIHOOD not in asked or tools.density is None:
        return []
    return likelihood_values(measuring, tools.density)
