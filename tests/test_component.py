"""Shards of published weights: read one tensor at a time."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vidiff.errors import CheckpointError
from vidiff.interop.component import fill, open_component

WIDTH, LAYERS, SHARDS = 1024, 24, 3  # 4 MiB a weight, 8 of them a shard


def write_shards(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = {f"{i}.weight": torch.full((WIDTH, WIDTH), float(i)) for i in range(LAYERS)}
    placed = {}
    for shard in range(SHARDS):
        part = {name: weights[name] for name in list(weights)[shard::SHARDS]}
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        save_file(part, folder / name)
        placed |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def network():
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def test_shards_fill_a_network_in_the_precision_asked_for(tmp_path):
    module = network()
    fill(module, open_component(write_shards(tmp_path / "shards")), dict, dtype=torch.bfloat16)
    for number, layer in enumerate(module):
        assert layer.weight.dtype == torch.bfloat16 and not layer.weight.requires_grad
        assert bool((layer.weight == number).all())


_PEAK = """
import re, sys
from pathlib import Path
from tests import test_component as this
from vidiff.interop import component

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

module, opened = this.network(), component.open_component(Path(sys.argv[1]))
component._put = lambda *args: None  # as if tensors went to another device
component.fill(module, opened, dict)  # what is loaded on the first call stays
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
component.fill(module, opened, dict)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_host_never_holds_more_than_a_shard(tmp_path):
    folder = write_shards(tmp_path / "shards")
    done = subprocess.run([sys.executable, "-c", _PEAK, str(folder)], capture_output=True, text=True)
    if "clear_refs" in done.stderr:
        pytest.skip("this kernel does not reset peaks")
    assert done.returncode == 0, done.stderr
    shard = max(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
    assert 0 < float(done.stdout) < 1.2 * shard


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"0.weight": "../x.safetensors"}, "outside of its folder"),
        ({"0.weight": "gone.safetensors"}, "gone.safetensors: missing"),
        ({}, "lists no weights"),
        ({"nothing": "model-00001-of-00003.safetensors"}, "the index names nothing"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, weight_map, word):
    folder = write_shards(tmp_path / "shards")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=word):
        open_component(folder)


def test_a_cut_shard_is_refused_by_name(tmp_path):
    folder = write_shards(tmp_path / "shards")
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"00002-of-00003.*not a whole safetensors file"):
        open_component(folder)
