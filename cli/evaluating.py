"""What ``evaluate`` does with its arguments: which sets, measured how, and written where."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vidiff.config import from_dict
from vidiff.diffusers_folder import is_diffusers_folder
from vidiff.errors import ConfigError, DataError
from vidiff.evaluation import (
    Hearing,
    Options,
    References,
    check_fits,
    density_of,
    generated_by,
    measured,
    open_references,
    opened,
    planned,
    prompts_of,
    relabeled,
)
from vidiff.files import write_text
from vidiff.metrics import ab as comparing
from vidiff.metrics.ab import Row
from vidiff.metrics.best import best_of
from vidiff.metrics.clip_set import check_there, open_clip_set
from vidiff.metrics.evaluate import LIKELIHOOD, Tools, asked_name, check_names
from vidiff.metrics.model_likelihood import AS_USUAL, LikelihoodConfig
from vidiff.metrics.report import markdown as as_markdown
from vidiff.metrics.report import write_report
from vidiff.metrics.results import Clip, Results, Value, read_results
from vidiff.metrics.tools import Reading, build_tools
from vidiff.metrics.verdict import interval_text, numbers, standings, verdict
from vidiff.train.checkpoint_model import TrainedModel, checkpoint_models
from vidiff.weights import CONFIG_NAME
from vidiff.yaml12 import parse

if TYPE_CHECKING:
    import torch

    from vidiff.memory import Strategy


@dataclass(frozen=True)
class Asked:
    """What is to be measured, or shown beside it."""

    models: tuple[str, ...] = ()
    generated: tuple[Path, ...] = ()
    results: tuple[Path, ...] = ()
    ab: tuple[str, str] | None = None
    prompts: Path | None = None
    device: str | None = None
    memory: str | None = None
    by: str | None = None
    targets: tuple[Path, ...] = ()  # files that are written in the end


def run(
    asked: Asked, options: Options, weights: Sequence[str], reading: Reading, hearing: Hearing
) -> tuple[list[Results], list[Row]]:
    """Return the results of everything that was asked for, and of two the comparison.

    Raises:
        ConfigError: if nothing is to be measured, or options contradict one another.
        DataError: if clips do not do.
    """
    from vidiff.cli.devices import chosen_device

    if asked.ab is not None and (asked.models or asked.generated or asked.results):
        raise ConfigError("--ab names both sides: leave out --model, --generated and --results")
    sides = _sides(asked, options)
    if not sides:
        raise ConfigError("nothing to measure: give --model, --generated or --ab")
    device = chosen_device(asked.device)
    told = _weights(weights)
    options = replace(options, needed=_check(asked, options, sides))
    prompts = _prompts(asked.prompts, options.count) if asked.prompts else None
    references, tools = References(None, None), None
    found = []
    for side in sides:
        if isinstance(side, Results):
            found.append(side)
            continue
        if tools is None:
            tools = build_tools(told, reading, device)
            references = open_references(options, hearing)
        if isinstance(side, TrainedModel):
            found.append(_of_model(side, prompts, device, asked.memory, references, tools, options, hearing))
        else:
            clips = opened(side, options, hearing)
            found.append(measured(str(side), clips, references, tools, options, hearing))
    found = relabeled(found)
    if asked.ab is None or not options.share.is_main:  # which alone has measured all
        return found, []
    rows = comparing.compared(*found, seed=options.seed)
    uneven = comparing.uneven_counts(*found)
    if uneven:
        hearing.note(f"not compared, since the number of clips decides their values: {', '.join(uneven)}")
    return found, rows


Side = TrainedModel | Path | Results  # a path is one of clips


def _sides(asked: Asked, options: Options) -> list[Side]:
    """Return everything that is to be measured or shown, so that what is not there is known before work begins.

    A stage of a run stands for all its checkpoints.
    """
    share = options.share
    if not share.is_main:
        share.wait()  # one process makes models out of checkpoints, the others find them
    names, trained = checkpoint_models(asked.ab or asked.models, options.out / "models")
    if share.is_main:
        share.wait()
    if asked.ab is not None and len(names) != 2:
        raise ConfigError(f"--ab compares two: name one checkpoint of a stage, such as {list(trained)[-1]}")
    sides = [_side(name, trained, only_models=asked.ab is None) for name in names]
    return [*sides, *asked.generated, *map(read_results, asked.results)]


def _side(name: str, trained: Mapping[str, TrainedModel], *, only_models: bool) -> Side:
    """Return what a name means: a model if ``only_models``, otherwise what lies there decides."""
    from vidiff.pipeline import find_model

    path = Path(name)
    if name in trained:
        return trained[name]
    if not only_models and path.suffix == ".json" and path.is_file():
        return read_results(path)
    if not only_models and path.is_dir() and not (path / CONFIG_NAME).is_file():
        return path
    return TrainedModel(name, find_model(name))


def _check(asked: Asked, options: Options, sides: Sequence[Side]) -> str | None:
    """Refuse, before any work is done, what would fail when it is done.

    Returns:
        The metric of ``--by``, if nothing that is there has it.

    Raises:
        ConfigError: if a metric is unknown or not measured, or a file to be written is a folder.
        DataError: if a folder of clips is not there.
        ResourceError: if a file could not be written.
    """
    from vidiff.cli.jobs import check_writable

    for path in asked.targets:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a file in it")
        check_writable(path)
    _check_memory(asked.memory, options, sides)
    if all(isinstance(side, Results) for side in sides):
        return None
    check_writable(options.out / "clips")
    for side in sides:
        if isinstance(side, Path):
            check_there(side)
    check_names(options.metrics or ())
    _check_likelihood(options, sides)
    shown = {name for side in sides if isinstance(side, Results) for v in side.values for name in (v.metric, v.name)}
    if asked.by is None or asked.by in shown:
        return None
    metric = asked_name(asked.by.partition("[")[0])
    check_names([metric], "--by")
    if options.metrics is not None and metric not in options.metrics:
        raise ConfigError(f"--by {asked.by}: not among --metrics {','.join(options.metrics)}; add it there")
    return metric


def _check_likelihood(options: Options, sides: Sequence[Side]) -> None:
    """Raise a ConfigError if the likelihood of clips without a model is asked for, or settings of it in vain."""
    asked = LIKELIHOOD in (options.metrics or ())
    if asked and any(isinstance(side, Path) for side in sides):
        raise ConfigError("--metrics likelihood: clips have none without a model; name models only, by --model or --ab")
    if not asked and options.likelihood != AS_USUAL:
        raise ConfigError("--likelihood: is only measured when asked: --metrics likelihood,...")


def _check_memory(memory: str | None, options: Options, sides: Sequence[Side]) -> None:
    """Raise a ConfigError if a plan of memory is asked for that nothing would keep to."""
    if memory is None:
        return
    if not any(isinstance(side, TrainedModel) and is_diffusers_folder(side.folder) for side in sides):
        raise ConfigError("--memory is for published models, and none is to be measured; leave it out")
    if LIKELIHOOD in (options.metrics or ()):
        raise ConfigError("--metrics likelihood takes models that are on the device as a whole; leave out --memory")


def _of_model(
    model: TrainedModel,
    prompts: Sequence[str] | None,
    device: "torch.device",
    memory: str | None,
    references: References,
    tools: Tools,
    options: Options,
    hearing: Hearing,
) -> Results:
    from vidiff.pipeline import load

    real = references.real if options.only_likelihood else None  # for which nothing has to be made
    prompts = prompts or ([] if real else prompts_of(references.real, options.count))
    pipeline = load(model.folder, device, strategy=_strategy(model, memory, device, options))
    tools = replace(tools, density=density_of(pipeline, model.label, options))
    if real is not None:
        return measured(model.label, real, references, tools, options, hearing, step=model.step)
    check_fits(planned(pipeline, model.label, prompts, options), references, tools, options)
    clips, seconds = generated_by(pipeline, model.label, prompts, options, hearing)
    pipeline.release()  # the networks that measure, and other models, come to the device now
    return measured(model.label, clips, references, tools, options, hearing, seconds, model.step)


def _strategy(model: TrainedModel, memory: str | None, device: "torch.device", options: Options) -> "Strategy | None":
    """Return how a published model goes to the device; None for one that goes there whole, as for its likelihood."""
    from vidiff.cli.placing import strategy_for

    if not is_diffusers_folder(model.folder) or LIKELIHOOD in (options.metrics or ()):
        return None
    return strategy_for(model.folder, memory, device, None, clips=options.batch)


def _prompts(path: Path, count: int | None) -> list[str]:
    from vidiff.cli.jobs import plan

    return list(dict.fromkeys(job.prompt for job in plan(None, path, None, None, 0, 1, None)))[:count]


def _weights(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        kind, _, path = text.partition("=")
        if not path:
            raise ConfigError(f"--weights {text}: write KIND=PATH, such as clip=clip-vit-base-patch32/")
        found[kind] = path
    return found


def likelihood_of(text: str | None) -> LikelihoodConfig:
    """Return what ``--likelihood`` says, such as ``method=ode,ode_steps=32``.

    Raises:
        ConfigError: if it has another form, or a setting does not do.
    """
    given = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--likelihood {part}: write NAME=VALUE, such as method=ode,ode_steps=32")
        given[name.strip()] = parse(value, "--likelihood").data
    return from_dict(LikelihoodConfig, given, "--likelihood")


def written(
    found: Sequence[Results],
    rows: Sequence[Row],
    asked: Asked,
    report: Path | None,
    markdown: Path | None,
    json_path: Path | None,
) -> str:
    """Write what was asked for, and return what is printed: all values with their protocols, then the verdict."""
    best = best_of(found, asked.by)
    if json_path is not None:
        for number, one in enumerate(found):
            path = json_path if len(found) == 1 else json_path.with_stem(f"{json_path.stem}-{number + 1}")
            write_text(path, json.dumps(one.to_dict(), indent=1) + "\n")
        if rows:
            write_text(json_path, json.dumps({"comparison": [row.to_dict() for row in rows]}, indent=1) + "\n")
    if markdown is not None:
        write_text(markdown, as_markdown(found, rows, best))
    if report is not None:
        write_report(report, found, comparison=rows, best=best, by=_ranking(found, asked.by))
    lines = [line for standing in standings(found) for line in _lines(standing.name, standing.entries)]
    lines += ["", *(row.text() for row in rows)] if rows else []
    told = verdict(found, comparing.sentences(rows, [one.label for one in found]))
    return "\n".join([*lines, "", *told, *([best.text()] if best else [])])


def _ranking(found: Sequence[Results], by: str | None) -> str | None:
    """Return ``by`` if it has a value for each clip, so that prompts can be ordered by it."""
    values = [value for one in found for value in one.values if by in (value.metric, value.name)]
    return by if any(value.per_clip for value in values) else None


def _lines(name: str, entries: Sequence[tuple[Results, Value]]) -> list[str]:
    values = [value for _, value in entries]
    lines = [name]
    for one, value in entries:
        shown, floor = numbers(values, value.value, value.floor)
        label = f"{one.label}: " if len(entries) > 1 else ""
        lines.append(f"  {label}{shown}  95% {interval_text(values, value)}  floor {floor}")
    return lines + [f"  {note}" for note in dict.fromkeys(value.note for value in values) if note]


def contenders(sides: Sequence[str]) -> list[Results]:
    """Return the clips of folders or of files of results, for the arena."""
    found = []
    for side in sides:
        if side.endswith(".json"):
            one = read_results(Path(side))
        else:
            clips = open_clip_set(Path(side)).clips
            one = Results(side, (), tuple(Clip(clip.key, clip.path, clip.prompt, clip.seed) for clip in clips))
        packed = [clip.key for clip in one.clips if not clip.path]
        if packed:
            raise DataError(f"{side}: {packed[0]} lies in a shard; the arena plays files: unpack its clips to a folder")
        found.append(one)
    return relabeled(found)


def tallied(path: Path, seed: int) -> str:
    """Return what a file of votes comes to: win rates of every two models, and ratings of all."""
    from vidiff.metrics.arena import read_votes
    from vidiff.metrics.comparison import ratings, win_rate

    votes = read_votes(path)
    if not votes:
        return f"{path}: no votes yet"
    lines = []
    for first, second in sorted({tuple(sorted((vote.first, vote.second))) for vote in votes}):
        between = [vote for vote in votes if {vote.first, vote.second} == {first, second}]
        scores = [vote.score if vote.first == first else 1 - vote.score for vote in between]
        rate = win_rate(scores.count(1), scores.count(0), scores.count(0.5))
        lines.append(
            f"{first} against {second}: wins {rate.rate:.0%} ({rate.low:.0%} to {rate.high:.0%}) of {rate.votes} votes,"
            f" {scores.count(0.5)} ties"
        )
    for name, rating in ratings(votes, seed).items():
        lines.append(f"{name}: Elo {rating.rating:.0f} ({rating.low:.0f} to {rating.high:.0f}), {rating.votes} votes")
    return "\n".join(lines)
