"""``vidiff data``"""

from pathlib import Path
from typing import Annotated

import typer

from vidiff.cli.output import console, result, terminated_as_interrupt

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at training data, and make some.")


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
    from vidiff.sizes import parsed_size

    height, width = parsed_size(size)
    dataset = ClipDataset(DataConfig(path, frames=frames, height=height, width=width, fps=fps))
    result(dataset.fates.to_dict(), dataset.fates.table(), as_json=json)


@app.command()
def toyworld(
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    count: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 1000,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT, or one number for a square.")] = "64",
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip.")] = 17,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same clips.")] = 0,
    heldout: Annotated[
        bool, typer.Option("--heldout", help="Only scenes with a pair of attributes that training never shows.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Values of an attribute, such as motion=left,right; may be repeated.")
    ] = None,
    folder: Annotated[bool, typer.Option("--folder", help="Write plain files instead of tar shards.")] = False,
) -> None:
    """Render captioned clips of a simple world whose truth is known exactly.

    Examples:

      vidiff data toyworld --out toyworld/ --count 5000 --size 256 --frames 33 --fps 24

      vidiff data toyworld --out unseen/ --count 256 --seed 1 --heldout --folder

      vidiff data toyworld --out red/ --only color=red --only motion=left,right
    """
    from vidiff.data.toyworld.only import parsed
    from vidiff.data.toyworld.write import ToyClips, write_folder, write_shards
    from vidiff.sizes import parsed_size
    from vidiff.types import Size

    height, width = parsed_size(f"{size}x{size}" if size.isdecimal() else size)
    clips = ToyClips(count, Size(frames, height, width, fps), seed, heldout, parsed(only or []))
    with terminated_as_interrupt(), console.status("rendering") as status:
        write = write_folder if folder else write_shards
        write(clips, out, lambda done: status.update(f"rendering: {done} of {count} clips"))
    result(None, str(out), as_json=False)
