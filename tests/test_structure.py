"""The shape of the code base: layers, sizes, packaging, and what importing costs."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vidiff import resources

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "vidiff").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])

# A module may import what stands on its own line or further up.
LAYERS = [
    {"errors", "tensors", "resources", "processes"},
    {"files", "yaml12", "overrides", "types", "resuming", "digests", "components", "component_configs"},
    {"config", "weights", "optimizer_state", "motion", "refinement"},
    {"checkpoint"},
    {"diffusion", "models", "text", "data"},
    {"interop", "sampling"},
    {"model_folder"},
    {"decoding", "train", "metrics", "diffusers_folder", "starting", "planning", "hub"},
    {"converting", "refining", "memory", "memory_table"},
    {"placement"},
    {"pipeline"},
    {"inverting", "sizes", "adapting", "candidates"},
    {"generation"},
    {"upscaling", "evaluation"},
    {"cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(path):
    relative = path.relative_to(ROOT)
    return "cli" if relative.parts[0] == "cli" else relative.with_suffix("").parts[1]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vidiff":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_import_downwards_only(path):
    if path == ROOT / "vidiff" / "__init__.py":
        return
    here = part_of(path)
    for name in imported(path):
        if name != "__version__":
            assert LEVEL[name] <= LEVEL[here], f"{here} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # A signature is a list, which may be as long as a command's options; what it does may not.
            assert node.end_lineno - node.body[0].lineno < 60, node.name


def test_nothing_unsafe_is_called():
    banned = ["import pickle", "torch.load(", "yaml.load(", "extractall", "os.system", "shell=True", "remote_code=True"]
    for path in SOURCES:
        code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
        assert not [word for word in banned if word in code], path


def _without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def test_every_package_is_listed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "vidiff").rglob("__init__.py")}
    assert set(setuptools["packages"]) == found | set(setuptools["package-dir"])


def test_every_shipped_yaml_is_reachable_and_builds():
    import torch

    from vidiff import config
    from vidiff.models.autoencoder import VideoVAE
    from vidiff.models.build import build_backbone
    from vidiff.models.drafter import Drafter
    from vidiff.models.evaluator import Evaluator
    from vidiff.models.plans import PlanCodec
    from vidiff.models.verifier import Verifier
    from vidiff.train.autoencoder_stage import AutoencoderStageConfig
    from vidiff.train.denoiser_stage import DenoiserStageConfig
    from vidiff.train.distillation_stage import teacher_folder
    from vidiff.train.drafter_stage import DrafterStageConfig
    from vidiff.train.evaluator_stage import EvaluatorStageConfig
    from vidiff.train.recipe import Recipe
    from vidiff.train.verifier_stage import VerifierStageConfig

    assert resources.recipes().keys() == {p.stem for p in (ROOT / "recipes").glob("*.yaml")}
    for path in resources.recipes().values():
        recipe = config.load(Recipe, path)
        with torch.device("meta"):
            latents = None
            for stage in recipe.stages:
                if isinstance(stage, AutoencoderStageConfig):
                    latents = VideoVAE(stage.autoencoder).latents
                elif isinstance(stage, DrafterStageConfig):
                    Drafter(stage.drafter, stage.plans)
                elif isinstance(stage, DenoiserStageConfig) and stage.makes_plans is not None:
                    build_backbone(stage.backbone, PlanCodec(stage.makes_plans).latents, 384)
                elif isinstance(stage, DenoiserStageConfig):
                    build_backbone(stage.backbone, latents, 384)
                elif isinstance(stage, EvaluatorStageConfig):
                    Evaluator(stage.evaluator, 384)
                elif isinstance(stage, VerifierStageConfig):
                    Verifier(stage.verifier, (latents.channels, 5, 8, 8), (2, 3), 384)
                else:
                    assert teacher_folder(stage.teacher).is_dir()
        if latents is not None:
            latents.shape(recipe.data.frames, recipe.data.height, recipe.data.width)


def test_no_generic_name_is_installed(tmp_path):
    code = "import importlib.util as u; print([n for n in ('cli', 'configs', 'recipes') if u.find_spec(n)])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; sys.argv = ['vidiff', '--help']\n"
        "from vidiff.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'decord', 'pydantic', 'accelerate'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_has_an_example_in_its_help():
    import typer

    from vidiff.cli.main import app

    def walk(command, path=()):
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk(sub, (*path, name))
        if not getattr(command, "commands", None):
            yield path, command

    found = list(walk(typer.main.get_command(app)))
    assert len(found) >= 7
    for path, command in found:
        assert "Example" in (command.help or ""), path
