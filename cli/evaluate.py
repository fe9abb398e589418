"""``vidiff evaluate``"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vidiff.cli.output import console, note, result, terminated_as_interrupt

app = typer.Typer(
    rich_markup_mode=None, invoke_without_command=True, help="Measure models and clips, and compare them."
)


Models = Annotated[
    list[str] | None,
    typer.Option(help="Bundled model, model folder, RUN/STAGE/step-N, or RUN/STAGE for all of them; repeatable."),
]
Generated = Annotated[list[Path] | None, typer.Option(help="Folder of clips that any tool made; may be repeated.")]
Sides = Annotated[
    tuple[str, str] | None, typer.Option("--ab", help="Compare two: models, folders of clips, or --json files.")
]
Weights = Annotated[
    list[str] | None, typer.Option(help="KIND=PATH of a published network, such as clip=FOLDER; see --list.")
]
Resizing = Annotated[
    str | None, typer.Option(help="How frames are resized: tf1, bilinear, bilinear-aa, bicubic-aa, pil-bicubic.")
]
Out = Annotated[Path, typer.Option(help="Folder of generated clips and features; a second run goes on.")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Go on without clips that cannot be read; they are listed.")
]
Likelihood = Annotated[
    str | None, typer.Option(help="How likelihood is measured, such as method=both,vlb_steps=500; see the docs.")
]
Shown = Annotated[list[Path] | None, typer.Option(help="Files of --json, to show beside what is measured now.")]


@app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    model: Models = None,
    generated: Generated = None,
    ab: Sides = None,
    data: Annotated[Path | None, typer.Option(help="Real clips: folder, shard or pattern of shards.")] = None,
    train: Annotated[Path | None, typer.Option(help="Clips that were trained on, to look for copies.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts, one a line; default the captions of --data.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Names, such as fd-evaluator,motion; see --list.")] = None,
    weights: Weights = None,
    protocol: Annotated[str, typer.Option(help="How I3D reads clips: styleganv, original or cdfvd.")] = "styleganv",
    frames: Annotated[int | None, typer.Option(help="Frames that published networks read.")] = None,
    stride: Annotated[int | None, typer.Option(help="From one frame that is read to the next.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels a side that published networks read.")] = None,
    filter: Resizing = None,
    crop: Annotated[str | None, typer.Option(help="squash, or center.")] = None,
    num: Annotated[int | None, typer.Option("--num", min=1, help="Real clips, and prompts; default all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Clips that a model makes of each prompt.")] = 1,
    stages: Annotated[str, typer.Option(help="Of a cascade: base, or all.")] = "base",
    seed: Annotated[int, typer.Option(min=0, help="Of clips, floors and intervals.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Clips in memory at once.")] = 8,
    out: Out = Path("evaluation"),
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a Markdown table.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write all values; --ab and --results read it.")] = None,
    results: Shown = None,
    by: Annotated[str | None, typer.Option(help="Metric that orders prompts and picks the best model.")] = None,
    allow_missing: AllowMissing = False,
    likelihood: Likelihood = None,
    mixed: Annotated[bool, typer.Option("--mixed", help="Go on with clips of several sizes and rates.")] = False,
    list_metrics: Annotated[bool, typer.Option("--list", help="Say what can be measured, and what it takes.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; default the best there is.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of published models: auto (what the device has free), low, or GiB.")
    ] = None,
) -> None:
    """Measure models and clips: distances to real clips, prompt following, motion, copies; every value with its
    protocol, an interval and a floor.

    Examples:

      vidiff evaluate --model sprites --data clips/ --report report.html

      vidiff evaluate --model runs/toyworld/video --data held-out/ --report curves.html

      vidiff evaluate --generated other-tool/ --data clips/ --json other.json

      vidiff evaluate --ab sprites other-tool/ --data clips/ --num 64
    """
    if context.invoked_subcommand is not None:
        return
    with terminated_as_interrupt():
        if list_metrics:
            _list()
            return
        from vidiff.cli.evaluating import Asked, likelihood_of, run, written
        from vidiff.evaluation import Hearing, Options
        from vidiff.metrics.tools import Reading
        from vidiff.processes import launched

        share = launched()
        options = Options(
            *(data, train, None if metrics is None else tuple(name.strip() for name in metrics.split(","))),
            *(num, seeds, stages, batch, seed, out, allow_missing, mixed, _command(), share),
            likelihood=likelihood_of(likelihood),
        )
        files = tuple(path for path in (report, markdown, json) if path is not None)
        named = (tuple(model or ()), tuple(generated or ()), tuple(results or ()))
        asked = Asked(*named, ab, prompts, device, memory, by, files)
        reading = Reading(protocol, frames, stride, resolution, filter, crop)
        hearing = Hearing(note, _progress) if share.is_main else Hearing(lambda line: None)
        found, rows = run(asked, options, tuple(weights or ()), reading, hearing)
        if share.is_main:
            result(None, written(found, rows, asked, report, markdown, json), as_json=False)


@app.command()
def arena(
    first: Annotated[str, typer.Argument(help="Folder of clips, or a file of evaluate --json.")],
    second: Annotated[str, typer.Argument(help="The other one.")],
    others: Annotated[list[str] | None, typer.Argument(help="Further ones.")] = None,
    votes: Annotated[Path, typer.Option(help="File of votes; a second run goes on.")] = Path("votes.jsonl"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of pairs and sides.")] = 0,
    tally: Annotated[bool, typer.Option("--tally", help="Only say what the votes so far come to.")] = False,
) -> None:
    """Show clips of two models side by side, blind, in a browser on this machine; count votes.

    Examples:

      vidiff evaluate arena ours/ theirs/

      vidiff evaluate arena ours/ theirs/ --tally
    """
    from vidiff.cli.evaluating import contenders, tallied
    from vidiff.metrics.arena import pairs_of, serve

    if not tally:
        try:
            serve(pairs_of(contenders([first, second, *(others or [])])), votes, port, seed=seed, note=note)
        except KeyboardInterrupt:
            note("")
    if votes.exists():
        result(None, tallied(votes, seed), as_json=False)


def _list() -> None:
    """Print every metric, what it is and what it takes beyond clips."""
    from vidiff.metrics.evaluate import METRICS

    width = max(len(metric.name) for metric in METRICS)
    for metric in METRICS:
        print(f"{metric.name:<{width}}  {metric.what}{'' if metric.default else ' (only when asked)'}")


def _command() -> str:
    import shlex
    import sys

    return shlex.join(["vidiff", *sys.argv[1:]])


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time left, or without a total a count; where nobody watches, a line now and then."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not console.is_terminal:
        yield _lines(title, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title.replace("[", r"\["), total=total or None)
        yield lambda done: bar.update(task, completed=done)


def _lines(title: str, total: int, every: float = 20.0) -> Callable[[int], None]:
    """Return what notes how far a count is, every so many seconds."""
    import time

    last = time.monotonic()

    def on_clip(done: int) -> None:
        nonlocal last
        if time.monotonic() - last > every:
            last = time.monotonic()
            note(f"{title}: {done}{f' of {total}' if total else ''}")

    return on_clip
