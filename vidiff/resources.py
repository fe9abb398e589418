"""The configs, recipes and models that ship with the package."""

from importlib.resources import files
from pathlib import Path

from vidiff.errors import ConfigError, did_you_mean

DEFAULT_MODEL = "toyworld"  # what makes clips where no model is named
EVALUATOR = "evaluator"  # the bundled network that clips are measured with


def recipes() -> dict[str, Path]:
    """Return the shipped recipes by name."""
    return _yaml_files("vidiff.recipes")


def configs() -> dict[str, Path]:
    """Return the shipped configs by name, for example ``model/dit_s``."""
    return _yaml_files("vidiff.configs")


def bundled_models() -> dict[str, Path]:
    """Return the folders of the models that ship with the package and make clips, by name."""
    root = Path(str(files("vidiff.assets")))
    folders = {path.parent.name: path.parent for path in sorted(root.glob("*/config.yaml"))}
    return {name: folder for name, folder in folders.items() if name != EVALUATOR}


def fast_model(name: str) -> str:
    """Return the bundled model that makes the clips of the bundled model ``name`` in few steps.

    Raises:
        ConfigError: if there is none; the message names the models that have one.
    """
    fast = {model.removesuffix("_fast"): model for model in bundled_models() if model.endswith("_fast")}
    if name not in fast:
        raise ConfigError(f"{name} has no fast version; models that have: {', '.join(fast) or 'none'}")
    return fast[name]


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given by path or by the name of a shipped one.

    Raises:
        ConfigError: if there is neither; the message names the nearest shipped recipe.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = recipes()
    stem = Path(name).name.removesuffix(".yaml")
    if stem in shipped and name in (stem, f"{stem}.yaml", f"recipes/{stem}.yaml"):
        return shipped[stem]
    hint = did_you_mean(stem, shipped) or f" Shipped recipes: {', '.join(sorted(shipped))}."
    raise ConfigError(f"{name}: no such recipe.{hint}")


def _yaml_files(package: str) -> dict[str, Path]:
    root = Path(str(files(package)))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
