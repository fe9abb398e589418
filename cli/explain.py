"""``vidiff explain``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidiff.cli.output import result

if TYPE_CHECKING:
    from vidiff.diffusion.schedule import Schedule
    from vidiff.sampling.times import Spacing

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Pictures of what settings mean.")


@app.callback()
def options() -> None:
    """Pictures of what settings mean."""  # with a callback, one command alone keeps its name


@app.command()
def schedule(
    name: Annotated[str, typer.Argument(help="Kind of the noise schedule, such as cosine, flow or edm.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="PNG file; default NAME.png.")] = None,
    spacing: Annotated[
        str, typer.Option(help="Where the steps fall, such as uniform, trailing or karras.")
    ] = "uniform",
    times: Annotated[str | None, typer.Option(help="The steps' times themselves, such as 1,0.8,0.5,0.2,0.")] = None,
    steps: Annotated[int, typer.Option(help="How many steps, where --times does not say.")] = 20,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of the schedule: --set shift=3")
    ] = None,
) -> None:
    """Plot alpha, sigma and log-SNR of a noise schedule over time, and where a sampler's steps fall.

    Examples:

      vidiff explain schedule cosine

      vidiff explain schedule flow --set shift=3 --spacing karras --steps 8 -o flow.png
    """
    from vidiff.data.video_write import write_png
    from vidiff.errors import ConfigError
    from vidiff.sampling.figure import schedule_figure
    from vidiff.sampling.times import ListedSpacing, listed_spacing, spacing_by_name

    target = Path(f"{name}.png") if output is None else output
    if target.suffix.lower() != ".png":
        raise ConfigError(f"the picture is a PNG, so -o must end in .png; got {target}")
    chosen = _schedule(name, settings or [])
    spaced: Spacing = spacing_by_name(spacing) if times is None else listed_spacing(times)
    found = spaced.times(chosen, len(spaced.listed) - 1 if isinstance(spaced, ListedSpacing) else steps)
    count = f"{len(found) - 1} step{'s' if len(found) > 2 else ''}"
    write_png(target, schedule_figure(chosen, found, _title(chosen), f"{count}, {spaced.kind} spacing"))
    result(None, str(target), as_json=False)


def _schedule(name: str, settings: list[str]) -> "Schedule":
    """Return the schedule of this kind with some of its settings changed."""
    from vidiff import config
    from vidiff.diffusion.schedule import SCHEDULES, Schedule
    from vidiff.errors import ConfigError, did_you_mean
    from vidiff.overrides import override

    if name not in SCHEDULES:
        hint = did_you_mean(name, SCHEDULES)
        raise ConfigError(f"unknown schedule {name!r}.{hint} Schedules: {', '.join(sorted(SCHEDULES))}.")
    data, origins = {"kind": name}, {(): f"schedule {name}"}
    for text in settings:
        data = override(data, text, origins)
    found: Schedule = config.from_dict(Schedule, data, f"schedule {name}")
    return found


def _title(schedule: "Schedule") -> str:
    """Return the kind of a schedule with the settings that are on."""
    from vidiff import config

    parts = []
    for key, value in config.to_dict(schedule).items():
        if key == "kind" or value is None or value is False:
            continue
        shown = value["kind"] if isinstance(value, dict) else f"{value:g}"
        parts.append(key if value is True else f"{key} {shown}")
    return f"{schedule.kind}:  {', '.join(parts)}"
