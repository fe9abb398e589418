"""``vidiff data``"""

from pathlib import Path
from typing import Annotated

import typer

from vidiff.cli.output import result

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at training data.")


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="Folder of shards or clips, one shard, or a pattern.")],
    frames: Annotated[int, typer.Option(help="Frames a sample needs.")] = 17,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of a sample.")] = "64x64",
    fps: Annotated[float | None, typer.Option(help="Frame rate to bring clips to; default as stored.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say what training would make of every clip: used, trimmed, re-timed or skipped, and why.

    Example: vidiff data check my-clips/ --frames 17 --size 64x64
    """
    from vidiff.data.dataset import ClipDataset, DataConfig
    from vidiff.generation import parsed_size

    height, width = parsed_size(size)
    dataset = ClipDataset(DataConfig(path, frames=frames, height=height, width=width, fps=fps))
    result(dataset.fates.to_dict(), dataset.fates.table(), as_json=json)
