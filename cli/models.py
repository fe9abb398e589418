"""``vidiff models``"""

from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The models that are there.")


@app.command("list")
def list_models() -> None:
    """List the bundled models.

    Example: vidiff models list
    """
    from vidiff import resources

    for name, folder in resources.bundled_models().items():
        print(f"{name}  {folder}")


@app.command()
def show(model: Annotated[str, typer.Argument(help="Bundled model, or a model folder.")] = "sprites") -> None:
    """Print a model's config: size, frame range, sampler, guidance, text encoder.

    Example: vidiff models show sprites
    """
    from vidiff.pipeline import find_model

    print((find_model(model) / "config.yaml").read_text(), end="")
