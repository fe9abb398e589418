"""The ``vidiff`` command: what the commands are, and how errors reach the user."""

import sys

import typer

from vidiff import __version__
from vidiff.cli import data, decode, evaluate, explain, generate, invert, models, reproduce, samplers, train, upscale
from vidiff.errors import UserError

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text to video from the command line.\n\n"
    "Example: vidiff generate 'a large green cube spins on sand while the camera moves forward'",
)
app.command()(generate.generate)
app.command()(train.train)
app.command()(invert.invert)
app.command()(upscale.upscale)
app.command()(decode.decode)
app.command()(reproduce.reproduce)
app.command()(samplers.samplers)
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(explain.app, name="explain")


# Options to turn to when memory runs out, of each command that computes.
LESS_MEMORY = {
    "generate": "--batch, --frames, --size, --memory",
    "train": "--set stages.0.trainer.accumulate=2",
    "upscale": "--to, --device",
    "invert": "--memory, --device",
    "decode": "--device",
    "reproduce": "--device",
    "evaluate": "--batch, --memory, --device",
}


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit()


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Text to video from the command line."""


def main() -> None:
    """Run the command line. Mistakes of the user print one line and exit with 2; bugs keep their traceback."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except typer.Exit as done:
        raise SystemExit(done.exit_code) from None
    except (typer.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if message := _usage_message(error):
            _fail(message)
        if message := _memory_message(error):
            _fail(message)
        raise
    except BaseException as stop:
        if (code := getattr(stop, "exit_code", None)) is not None:
            raise SystemExit(code) from None
        raise


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _usage_message(error: Exception) -> str | None:
    """Return what click found wrong with the arguments, in one line."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    hint = f" Try '{context.command_path} --help'." if context is not None else ""
    return f"{error.format_message().rstrip('.')}.{hint}"


def _memory_message(error: Exception) -> str | None:
    if "torch" not in sys.modules:
        return None
    from vidiff.decoding import is_out_of_memory

    if not is_out_of_memory(error):
        return None
    advice = LESS_MEMORY.get(sys.argv[1] if len(sys.argv) > 1 else "")
    return "out of memory" if advice is None else f"out of memory; what may help: {advice}"
