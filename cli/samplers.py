"""``vidiff samplers``"""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from vidiff.cli.output import result


def samplers(json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List the samplers: order of convergence, evaluations of the network a step, whether they add noise, source.

    Example: vidiff samplers
    """
    from vidiff.sampling.solvers import SOLVERS, settings_of

    rows: list[dict[str, Any]] = []
    for name, member in sorted(SOLVERS.items()):
        rows.append({"name": name} | asdict(member.traits) | {"settings": settings_of(member())})
    result(rows, _table(rows), json)


def _table(rows: list[dict[str, Any]]) -> str:
    """Return columns of plain text, which can be cut and searched."""
    lines = [("name", "order", "evaluations", "noise", "settings", "source")]
    for row in rows:
        settings = " ".join(f"{key}={value}" for key, value in row["settings"].items())
        noise = "yes" if row["stochastic"] else "eta > 0" if "eta" in row["settings"] else "no"
        lines.append((row["name"], row["order"], row["evaluations"], noise, settings or "-", row["source"]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
