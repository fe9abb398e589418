"""Scripts and other files outside any package, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    """Return ``scripts/NAME.py``; where scripts are not there, skip the module that asks."""
    path = SCRIPTS / f"{name}.py"
    if not path.is_file():
        pytest.skip("scripts are not part of an installed copy", allow_module_level=True)
    return loaded(path)


def loaded(path: Path) -> ModuleType:
    """Return a Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
