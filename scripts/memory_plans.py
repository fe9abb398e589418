"""Print the table of docs/memory.md: plans for the published Wan models at the sizes they were made for.

python scripts/memory_plans.py
"""

from collections.abc import Iterator

from vidiff.errors import ConfigError
from vidiff.interop.wan_sizes import SHAPES, SIZES
from vidiff.memory import GIB, Budget, MemoryPlan, plan
from vidiff.memory_table import described
from vidiff.models.shapes import ModelShape
from vidiff.types import Size

PHASES = ("encode text", "encode pictures", "denoise", "decode")
BUDGETS = (8, 12, 16, 24, 32, 48, 80)


def plans(shape: ModelShape, size: Size) -> Iterator[tuple[Budget, MemoryPlan]]:
    """Yield the smallest of the budgets at which each strategy is chosen, with weights in full."""
    last = None
    for budget in BUDGETS:
        try:
            found = plan(shape, size, budget=budget, weights=("full",))
        except ConfigError:
            continue
        if found.strategy != last:
            yield budget, found
        last = found.strategy


def lines() -> Iterator[str]:
    yield "| model | clip | card | text | picture | denoise | decode | host | how |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|---|"
    shapes = list(SHAPES.values())
    for number, (name, shape) in enumerate(SHAPES.items()):
        if shape in shapes[:number]:  # differs in its settings only
            continue
        for size in SIZES[name]:
            clip = f"{size.width}x{size.height}x{size.frames}"
            for budget, found in plans(shape, size):
                needed = {phase.name: f"{phase.needed / GIB:.1f}" for phase in found.phases}
                needs = " | ".join(needed.get(name, "") for name in PHASES)
                host = f"{found.host / GIB:.0f}"
                yield f"| {name} | {clip} | {budget} | {needs} | {host} | {described(found.strategy)} |"


if __name__ == "__main__":
    print("\n".join(lines()))
