"""``vidiff train``"""

from pathlib import Path
from typing import Annotated

import typer

from vidiff.cli.output import console, result


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or a shipped one: toyworld, sprites, tiny.")],
    data: Annotated[Path | None, typer.Option(help="Your clips, in place of the recipe's.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Default runs/NAME; a run that is there goes on.")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", help="Override: stages.0.trainer.max_steps=500")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print the resolved recipe, then stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train the stages of a recipe, one after the other. The same command goes on where a run was stopped.

    Examples:

      vidiff train tiny --data my-clips/

      vidiff train sprites --set stages.2.trainer.max_steps=3000 --run-dir runs/longer
    """
    from vidiff import config, resources
    from vidiff.train.recipe import Recipe, run

    overrides = list(set or [])
    if data is not None:
        overrides.append(f"data.path={_quoted(data)}")
    loaded = config.load(Recipe, resources.recipe_path(recipe), overrides)
    if dry_run:
        print(config.dump(loaded), end="")
        return
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    folder = run(loaded, run_dir or Path("runs") / loaded.name, console)
    result({"model": str(folder)}, f"{folder}  (vidiff generate PROMPT --model {folder})", as_json=json)


def _quoted(path: Path) -> str:
    """Return a path as a YAML string, whatever characters it holds."""
    return "'" + str(path).replace("'", "''") + "'"
