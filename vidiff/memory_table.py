"""A memory plan for people."""

from typing import TYPE_CHECKING

from vidiff.memory import GIB, MemoryPlan, Strategy

if TYPE_CHECKING:
    from rich.table import Table


def table(plan: MemoryPlan) -> "Table":
    """Return a plan for a terminal: what lies where, then each phase's peak on the device."""
    from rich.table import Table

    result = Table("what", "where", "type", "GiB", title=described(plan.strategy))
    result.columns[3].justify = "right"
    for row in plan.rows:
        result.add_row(row.what, row.where, row.dtype, f"{row.bytes / GIB:.2f}")
    for phase in plan.phases:
        result.add_section()
        for name, size in phase.parts:
            result.add_row(f"  {name}", "device", "", f"{size / GIB:.2f}")
        result.add_row(f"{phase.name}: peak, and with workspaces", "device", "", f"{phase.bytes / GIB:.2f}")
        result.add_row("", "", "", f"{phase.needed / GIB:.2f}")
    given = "" if plan.budget is None else f" of {plan.budget / GIB:.1f}"
    result.caption = f"needs {plan.needed / GIB:.1f}{given} GiB on the device and {plan.host / GIB:.1f} GiB on the host"
    return result


def described(strategy: Strategy) -> str:
    """Return a strategy in a few words."""
    text = {
        "beside": "text beside the transformer, then freed",
        "device": "text on the device, then freed",
        "host": "text on the CPU",
    }[strategy.text]
    transformer = {
        "resident": "transformer on the device",
        "swapped": "one expert on the device at a time",
        "streamed": "transformer layer by layer",
    }[strategy.transformer]
    decode = {"whole": "whole clips", "chunks": "frames in chunks", "tiles": "frames in tiles"}[strategy.decode]
    parked = ", after the transformer has left" if strategy.parked else ""
    return f"{text}; {transformer}{'' if strategy.weights == 'full' else f', {strategy.weights}'}; {decode}{parked}"
