"""``vidiff models``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vidiff.cli.output import console, terminated_as_interrupt
from vidiff.resources import DEFAULT_MODEL

if TYPE_CHECKING:
    from vidiff.interop.wan_published import Published
    from vidiff.model_folder import ModelConfig

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The models that are there, and published ones.")


@app.command("list")
def list_models() -> None:
    """List the bundled models and the published ones that can be read, with where they lie.

    Example: vidiff models list
    """
    from vidiff import resources
    from vidiff.hub import pinned
    from vidiff.interop.wan_published import PUBLISHED

    for name, folder in resources.bundled_models().items():
        print(f"{name}  {folder}")
    pins = pinned()
    known = {one.hub: one.name for one in PUBLISHED}
    for hub in [*known, *(name for name in pins if name not in known)]:
        print(f"{hub}  {known.get(hub, '')}  {'pulled at ' + pins[hub][:12] if hub in pins else 'not pulled'}")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="Bundled model, model folder, or hub id.")] = DEFAULT_MODEL,
    sampling: Annotated[bool, typer.Option("--sampling", help="Only how it samples.")] = False,
    lora: Annotated[Path | None, typer.Option("--lora", help="A LoRA file to describe instead.")] = None,
) -> None:
    """Print a model's config: size, frame range, sampler, guidance, text encoder. Or tell what a LoRA file is.

    Examples:

      vidiff models show sprites

      vidiff models show Wan-AI/Wan2.1-T2V-1.3B-Diffusers

      vidiff models show --lora style.safetensors
    """
    if lora is not None:
        print(_described(lora), end="")
        return
    from vidiff import config, yaml12
    from vidiff.diffusers_folder import is_diffusers_folder, open_diffusers_folder
    from vidiff.hub import pinned
    from vidiff.interop.wan_published import PUBLISHED
    from vidiff.pipeline import find_model

    published = {one.hub: one for one in PUBLISHED}
    if model in published and model not in pinned() and not Path(model).is_dir():
        print(_defaults(published[model]), end="")
        return
    folder = find_model(model)
    if not is_diffusers_folder(folder):
        if not sampling:
            print((folder / "config.yaml").read_text(), end="")
            return
        settings = config.to_dict(_read(folder).sampling)
        print(yaml12.dump(settings), end="")
        return
    opened = open_diffusers_folder(folder)
    if not sampling and opened.known_as is not None:
        print(_defaults(opened.known_as), end="")
    print(yaml12.dump(config.to_dict(opened.config.sampling if sampling else opened.config)), end="")


@app.command()
def pull(model: Annotated[str, typer.Argument(help="OWNER/NAME, or OWNER/NAME@COMMIT.")]) -> None:
    """Fetch a published model. It is read at the commit that was fetched from then on; a broken fetch goes on.

    Example: vidiff models pull Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    """
    with terminated_as_interrupt():
        from vidiff.cli.placing import fetched
        from vidiff.hub import pinned

        folder = fetched(model)
        print(f"{folder}  {pinned()[model.partition('@')[0]]}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Model folder of ours, or one in the diffusers layout, or hub id.")],
    target: Annotated[Path, typer.Argument(help="New folder, of the other layout.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16; what a folder of ours is written in.")] = "float32",
) -> None:
    """Write a model in the other layout: ours as diffusers reads it, and the other way.

    Examples:

      vidiff models convert Wan-AI/Wan2.1-T2V-1.3B-Diffusers ours/

      vidiff models convert runs/mine/export mine-diffusers/
    """
    with terminated_as_interrupt():
        import torch

        from vidiff.cli.devices import checked_dtype
        from vidiff.converting import from_diffusers, to_diffusers
        from vidiff.diffusers_folder import is_diffusers_folder
        from vidiff.pipeline import find_model

        folder = find_model(source)
        with console.status(f"converting {source}"):
            if is_diffusers_folder(folder):
                from_diffusers(folder, target, getattr(torch, checked_dtype(dtype)))
            else:
                to_diffusers(folder, target)
        print(target)


def _read(folder: Path) -> "ModelConfig":
    from vidiff.model_folder import ModelConfig, read_config

    found: ModelConfig = read_config(ModelConfig, folder)
    return found


def _described(path: Path) -> str:
    """Return what a LoRA file is, a line each."""
    from vidiff.interop.lora import describe, read_lora

    lora = read_lora(path)
    info = describe(lora)
    alphas = ", ".join(f"{alpha:g}" for alpha in info.alphas)
    known = len(lora.changes) + len(lora.second)
    lines = {
        "format": info.dialect,
        "rank": ", ".join(map(str, info.ranks)) or "none: full differences",
        "alpha": alphas or "none: the scale is 1",
        "base": info.base or ("unknown" if info.width is None else f"unknown, of width {info.width}"),
        "kind": "image-to-video" if info.image else "text-to-video",
        "blocks": str(info.num_blocks),
        "modules": ", ".join(info.modules),
        "coverage": f"{known} of {known + info.foreign} modules are a Wan transformer's",
        "experts": "the second one has changes of its own" if info.second else "",
        "differences": f"{info.differences} modules" if info.differences else "",
    }
    return "".join(f"{name}: {value}\n" for name, value in lines.items() if value)


def _defaults(one: "Published") -> str:
    """Return the setting that a model was published with, a line each."""
    size = one.size
    shift = f"{one.shift:g}" if one.large_shift is None else f"{one.shift:g}; {one.large_shift:g} from 1280x720 on"
    lines = {
        "name": one.name,
        "hub": one.hub,
        "parameters": f"{one.params:g} billion" + (" in each of two experts" if one.boundary is not None else ""),
        "size": f"{size.width}x{size.height}, {size.frames} frames at {size.fps:g} a second",
        "frames": "4 n + 1",
        "sides": f"multiples of {32 if one.latent_channels == 48 else 16}",
        "picture": {"none": "takes none", "concat": "starts from one", "known": "may start from one"}[one.pictures],
        "sampler": f"unipc, {one.num_steps} steps, shift {shift}",
        "guidance": str(one.guidance),
        "experts": "" if one.boundary is None else f"the second one below t = {one.boundary:g}",
        "negative": one.negative,
    }
    return "".join(f"# {name}: {value}\n" for name, value in lines.items() if value)
