"""An evaluation from what the user names to results: clips made where a model is given, then measured."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vidiff.candidates import resolved
from vidiff.data.video_io import ClipInfo
from vidiff.data.video_write import format_of
from vidiff.errors import ConfigError, DataError
from vidiff.generation import Job, Settings, is_finished, recipe_of
from vidiff.generation import generate as make
from vidiff.metrics.clip_set import ClipSet, SetClip, check_alike, check_copies, check_there, open_clip_set
from vidiff.metrics.evaluate import LIKELIHOOD, Tools, chosen, evaluate, shared
from vidiff.metrics.measuring import Measuring, Progress, unseen
from vidiff.metrics.model_likelihood import AS_USUAL, LikelihoodConfig, ModelDensity
from vidiff.metrics.results import Clip, Results, versions
from vidiff.pipeline import Pipeline
from vidiff.processes import ALONE, Share
from vidiff.sizes import final_size, stage_count


@dataclass(frozen=True)
class Options:
    """What all evaluated models share."""

    data: Path | None = None  # real clips, which also say what is asked for
    train: Path | None = None  # clips that were trained on
    metrics: tuple[str, ...] | None = None  # None: all that can be measured
    count: int | None = None  # clips of the data, and prompts; None: all
    seeds: int = 1  # clips of each prompt
    stages: str = "base"  # that a model makes clips with
    batch: int = 8
    seed: int = 0
    out: Path = Path("evaluation")  # generated clips and features
    allow_missing: bool = False  # go on without clips that cannot be read
    mixed: bool = False  # go on with clips of several sizes and rates
    command: str = ""
    share: Share = ALONE  # this process's part of the work
    needed: str | None = None  # a metric without which the others are of no use
    likelihood: LikelihoodConfig = AS_USUAL

    @property
    def only_likelihood(self) -> bool:
        """Return whether nothing is asked that takes generated clips."""
        return self.metrics is not None and set(self.metrics) == {LIKELIHOOD}


@dataclass(frozen=True)
class Hearing:
    """Where progress and notes go."""

    note: Callable[[str], None] = print
    progress: Progress = unseen


@dataclass(frozen=True)
class References:
    """The real clips of an evaluation."""

    real: ClipSet | None
    train: ClipSet | None

    def beside(self, clips: ClipSet) -> list[ClipSet]:
        """Return ``clips`` and the real ones."""
        return [one for one in (clips, self.real, self.train) if one is not None]


def open_references(options: Options, hearing: Hearing) -> References:
    """Return the real clips; raises as `opened`."""
    for path in (options.data, options.train):  # before the first one is read, which may take long
        if path is not None:
            check_there(path)
    return References(
        None if options.data is None else opened(options.data, options, hearing, options.count),
        None if options.train is None else opened(options.train, options, hearing, None),
    )


def opened(
    path: Path,
    options: Options,
    hearing: Hearing,
    limit: int | None = None,
    label: str | None = None,
    only: frozenset[str] | None = None,
) -> ClipSet:
    """Return the clips of a folder or of shards; see `open_clip_set`.

    Raises:
        DataError: if there are none, or some cannot be read and going on without them was not allowed.
    """
    with hearing.progress(f"opening {path}", 0) as on_clip:
        found = open_clip_set(path, label=label, limit=limit, only=only, decode=options.allow_missing, on_clip=on_clip)
    if limit is not None and len(found) < limit:
        hearing.note(f"{path}: {len(found)} clips, fewer than the {limit} of --num")
    if found.unreadable and not options.allow_missing:
        name, why = found.unreadable[0]
        raise DataError(
            f"{path}: {len(found.unreadable)} of {len(found.unreadable) + len(found)} clips cannot be read, such as "
            f"{name} ({why}); mend or remove them, or go on without them by --allow-missing"
        )
    return found


def prompts_of(real: ClipSet | None, count: int | None) -> list[str]:
    """Return the different prompts of the real clips, in their order.

    Raises:
        ConfigError: if there are none.
    """
    prompts = list(dict.fromkeys(clip.prompt for clip in real.clips if clip.prompt)) if real is not None else []
    if not prompts:
        raise ConfigError("a model needs prompts: give --data with captions, or --prompts FILE")
    return prompts[:count]


def generated_by(
    pipeline: Pipeline, name: str, prompts: Sequence[str], options: Options, hearing: Hearing
) -> tuple[ClipSet, float | None]:
    """Return a model's clips of ``prompts``, and how many seconds one took to make.

    Clips that are there, made by the same model with the same settings, are kept; a run that was interrupted goes on.
    """
    jobs = _jobs(pipeline, name, prompts, options)
    size, count = pipeline.config.size, _stage_count(pipeline, options)
    common = (name, size, resolved(pipeline, pipeline.config.sampling, size), format_of(Path("x.mp4")), 1)
    settings = Settings(*common, dtype=pipeline.config.dtype, device=str(pipeline.device), stages=count)
    waiting = [job for job in jobs if not is_finished(job, recipe_of(pipeline, job, settings))]
    if len(waiting) < len(jobs):
        hearing.note(f"{name}: {len(jobs) - len(waiting)} of {len(jobs)} clips were made before")
    options.share.wait()  # until all have seen the same ones waiting
    mine = options.share.of(waiting, options.batch)
    started = time.monotonic()
    final = final_size(pipeline, size, count)
    title = f"{name}: making clips of {final.frames}x{final.width}x{final.height}"
    with hearing.progress(title, len(mine)) as on_clip:
        for start in range(0, len(mine), options.batch):
            make(pipeline, mine[start : start + options.batch], settings, note=hearing.note)
            on_clip(min(start + options.batch, len(mine)))
    seconds = (time.monotonic() - started) / len(mine) if mine else None
    options.share.wait()
    names = frozenset(job.output.stem for job in jobs)  # the folder may hold those of an evaluation of more prompts
    return opened(jobs[0].output.parent, options, hearing, label=name, only=names), seconds


def planned(pipeline: Pipeline, name: str, prompts: Sequence[str], options: Options) -> ClipSet:
    """Return the clips that `generated_by` would make, so that what they do not fit is known before; none is there."""
    size = final_size(pipeline, pipeline.config.size, _stage_count(pipeline, options))
    info = ClipInfo(size.frames, size.height, size.width, size.fps)
    jobs = _jobs(pipeline, name, prompts, options)
    return ClipSet(name, tuple(SetClip(job.output.stem, job.output, info, "", job.prompt, job.seed) for job in jobs))


def density_of(pipeline: Pipeline, label: str, options: Options) -> ModelDensity:
    """Return the base stage of a model as what gives real clips a likelihood."""
    parts = (pipeline.config, pipeline.denoiser, pipeline.autoencoder, pipeline.text, pipeline.hash)
    return ModelDensity(label, *parts, options.likelihood)


def _jobs(pipeline: Pipeline, name: str, prompts: Sequence[str], options: Options) -> list[Job]:
    folder = options.out / "clips" / f"{_safe(name)}-{pipeline.hash[:12]}"
    negative = pipeline.config.sampling.negative
    return [
        Job(prompt, seed, folder / f"{index:05d}-{_short(prompt)}-{seed}.mp4", negative)
        for index, prompt in enumerate(prompts)
        for seed in range(options.seed, options.seed + options.seeds)
    ]


def _short(prompt: str) -> str:
    """Return a hash for file names, so that results of other prompts keep their clips."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:8]


def _stage_count(pipeline: Pipeline, options: Options) -> int:
    return stage_count(pipeline, None if options.stages == "all" else options.stages)


def measured(
    label: str,
    clips: ClipSet,
    references: References,
    tools: Tools,
    options: Options,
    hearing: Hearing,
    seconds: float | None = None,
    step: int | None = None,
) -> Results:
    """Return what the metrics say of one set of clips.

    Raises:
        DataError: if the clips do not fit the data or one another, or are too few.
        ConfigError: if a metric is unknown or cannot be measured.
    """
    check_copies(clips)
    measuring, names = _fitting(clips, references, tools, options, hearing)
    values, neighbors = evaluate(measuring, tools, names if options.share.is_main else shared(names))
    return Results(
        label=label,
        values=tuple(values),
        clips=tuple(Clip(clip.key, clip.path, clip.prompt, clip.seed) for clip in clips.clips),
        neighbors=neighbors,
        excluded=tuple(bad for one in references.beside(clips) for bad in one.unreadable),
        step=step,
        seconds_per_clip=seconds,
        command=options.command,
        versions=versions(),
    )


def check_fits(clips: ClipSet, references: References, tools: Tools, options: Options) -> None:
    """Refuse clips, made or only `planned`, that do not fit the data or the metrics; raises as `measured`."""
    _fitting(clips, references, tools, options, Hearing(note=lambda line: None))


def _fitting(
    clips: ClipSet, references: References, tools: Tools, options: Options, hearing: Hearing
) -> tuple[Measuring, list[str]]:
    """Return what measures the clips, and what is measured of them."""
    if not options.mixed:
        check_alike(references.beside(clips))
    measuring = Measuring(
        *(clips, references.real, options.out / "features", references.train, options.seed, options.batch),
        note=hearing.note,
        progress=hearing.progress,
        share=options.share,
    )
    names = chosen(measuring, tools, options.metrics)
    if options.needed is not None and options.needed not in names:
        chosen(measuring, tools, [options.needed])  # says what it takes
        raise ConfigError(f"--by {options.needed}: is only measured when asked: --metrics {options.needed},...")
    return measuring, names


def relabeled(results: Sequence[Results]) -> list[Results]:
    """Return results whose labels differ: equal ones are numbered."""
    seen: dict[str, int] = {}
    found = []
    for one in results:
        seen[one.label] = seen.get(one.label, 0) + 1
        found.append(one if seen[one.label] == 1 else replace(one, label=f"{one.label} ({seen[one.label]})"))
    return found


def _safe(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "-" for character in name)[-60:].lstrip(
        "."
    )
