import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from tests.clips import write_folder
from vidiff.cli.generate import _Sampler
from vidiff.cli.jobs import plan, slug
from vidiff.cli.progress import half_blocks
from vidiff.errors import ConfigError, DataError
from vidiff.model_folder import SamplingConfig
from vidiff.sampling.times import KarrasSpacing, ListedSpacing


def test_half_blocks_hold_two_pixels_a_character():
    pixels = np.zeros((4, 3, 3), np.uint8)
    pixels[0, 1] = (255, 0, 0)
    pixels[1, 1] = (0, 255, 0)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=20)
    console.print(half_blocks(pixels))
    shown = console.file.getvalue()
    assert shown.count("▀") == 6 and "38;2;255;0;0;48;2;0;255;0m" in shown


def test_file_names_of_prompts_are_short_and_plain():
    assert slug("Ein Ork, grün & /böse/..\n") == "ein-ork-grun-bose"
    assert slug("🦊🦊") == "clip" and len(slug("word " * 100)) <= 48


def test_seeds_count_up_and_name_the_files(tmp_path):
    jobs = plan("an orc", None, tmp_path, None, 7, 3, "gif")
    assert [(job.seed, job.output.name) for job in jobs] == [(s, f"an-orc-{s}.gif") for s in (7, 8, 9)]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"prompt": "a", "id": "../x"}', "does not do as a file name"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "there twice"),
        ('{"prompt": ""}', "is empty"),
        ('{"words": "a"}', "needs a prompt"),
        ("{broken", "not JSON"),
        ('{"prompt": "a", "seed": -1}', "seeds lie between"),
        ("", "holds 0 prompts"),
    ],
)
def test_a_bad_prompt_file_names_its_line(tmp_path, text, word):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises((DataError, ConfigError), match=word):
        plan(None, path, tmp_path, None, 0, 1, None)


def test_lines_of_a_text_file_are_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffan orc\n\n  an   elf \n")
    jobs = plan(None, tmp_path / "p.txt", tmp_path / "out", "blur", 4, 1, None)
    assert [(job.prompt, job.seed, job.negative) for job in jobs] == [("an orc", 4, "blur"), ("an elf", 4, "blur")]
    assert [job.output.name for job in jobs] == ["00000-an-orc.mp4", "00001-an-elf.mp4"]


def test_where_steps_fall_is_said_by_name_or_one_by_one():
    own = SamplingConfig(num_steps=30)
    of = lambda spacing, times, steps=None: _Sampler(None, None, None, spacing, times).grid(own, steps)  # noqa: E731
    assert of(None, None) == (own.spacing, 30) and of("karras", None, 8) == (KarrasSpacing(), 8)
    assert of(None, "1,0.5,0") == (ListedSpacing(listed=(1.0, 0.5, 0.0)), 2)
    with pytest.raises(ConfigError, match="give one of the two"):
        of("karras", "1,0")
    spacing, steps = of(None, "1,0.5,0", 7)
    with pytest.raises(ConfigError, match="are 2 steps, not 7"):
        SamplingConfig(spacing=spacing, num_steps=steps)


def test_memory_that_runs_out_names_options_that_the_command_has(monkeypatch, capsys):
    import typer

    from vidiff.cli import main as module

    commands = typer.main.get_command(module.app).commands
    for name, advice in module.LESS_MEMORY.items():
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--\w+", advice)) <= options

    def fails(**options):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(module, "app", fails)
    monkeypatch.setattr(sys, "argv", ["vidiff", "decode", "x"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 2 and capsys.readouterr().err == "error: out of memory; what may help: --device\n"


def vidiff(*arguments, **kwargs):
    return subprocess.run([sys.executable, "-m", "vidiff", *map(str, arguments)], text=True, **kwargs)


def test_data_check_prints_the_fate_of_every_clip(tmp_path):
    write_folder(tmp_path / "c", 2)
    (tmp_path / "c" / "bad.mp4").write_bytes(b"x")
    options = ("data", "check", tmp_path / "c", "--frames", 9, "--size", "32x32", "--json")
    done = vidiff(*options, capture_output=True, check=True)
    assert json.loads(done.stdout)["used"] == 2 and json.loads(done.stdout)["total"] == 3


def test_toyworld_writes_what_data_check_reads(tmp_path):
    out = tmp_path / "out"
    size = ("--frames", 3, "--size", 16)
    vidiff("data", "toyworld", "--out", out, "--count", 2, *size, "--seed", 1, "--heldout", check=True)
    assert json.loads((out / "MANIFEST.json").read_text())["shards"]["toyworld-00000.tar"]["samples"] == 2
    done = vidiff("data", "check", out, "--frames", 3, "--size", "16x16", "--json", capture_output=True, check=True)
    assert json.loads(done.stdout)["used"] == 2
    vidiff("data", "toyworld", "--out", tmp_path / "wide", "--count", 1, "--frames", 3, "--size", "24X16", check=True)


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = vidiff("train", "tiny", "--dry-run", stdout=write, stderr=subprocess.PIPE, cwd=tmp_path)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("train", "spritess"), "Did you mean sprites?"),
        (("train", "tiny", "--set", "stages.0.trainer.lrr=1"), "lrr"),
        (("train", "tiny", "--set", "nonsense"), "nonsense"),
        (("train", "tiny", "--data", "nowhere"), "nowhere"),
        (("decode", "nowhere"), "no run folder"),
        (("reproduce", "nowhere.mp4"), "nowhere.mp4"),
        (("data", "toyworld", "--out", "x", "--size", "0"), "WIDTHxHEIGHT"),
        (("data", "toyworld", "--out", "x", "--fps", "0"), "fps must lie"),
        (("data", "toyworld", "--out", "x", "--only", "colour=red"), "Did you mean color"),
        (("data", "toyworld", "--out", "/proc/nowhere"), "/proc/nowhere"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, word):
    done = vidiff(*arguments, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
