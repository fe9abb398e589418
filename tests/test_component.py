"""Shards of published weights: read one tensor at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vidiff.components import check_finite, open_component
from vidiff.errors import CheckpointError
from vidiff.interop.component import fill

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
import gc, re, sys
from pathlib import Path
from tests import test_component as this
from vidiff import components
from vidiff.interop import component

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

module, opened = this.network(), components.open_component(Path(sys.argv[1]))
component._put = lambda *args: None  # as if tensors went to another device
component.fill(module, opened, dict)  # what is loaded on the first call stays
for _ in range(3):
    gc.collect()
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
    # Whatever else the process does in one of three runs only adds to its peak.
    assert 0 < min(map(float, done.stdout.split())) < 1.2 * shard


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"0.weight": "../x.safetensors"}, "outside of its folder"),
        ({"0.weight": "gone.safetensors"}, "gone.safetensors: missing"),
        ({}, "lists no weights"),
        ({"0.weight": ["model-00001-of-00003.safetensors"]}, r"0\.weight is in no file but \['model-"),
        ({"0.weight": 5}, r"index\.json: 0\.weight is in no file but 5"),
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


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(dtype, value):
    for place in (0, 500, 1000):
        tensor = torch.linspace(-1, 1, 1001, dtype=dtype)
        check_finite(Path("x"), "some", tensor)
        tensor[place] = value
        with pytest.raises(CheckpointError, match="x: some is not finite"):
            check_finite(Path("x"), "some", tensor)


def test_the_file_that_is_read_whole_is_the_one_that_is_checked(tmp_path):
    folder = write_shards(tmp_path / "shards")
    save_file({"other.weight": torch.zeros(2)}, folder / "model.safetensors")
    assert len(open_component(folder).shapes) == LAYERS
    assert open_component(folder, "model.safetensors").shapes == {"other.weight": (2,)}
