"""Models from the hub: pinned when they are fetched, and refused in one line."""

import json
import sys
from types import SimpleNamespace

import pytest

from vidiff import hub
from vidiff.errors import CheckpointError, ConfigError, ResourceError
from vidiff.pipeline import find_model

FIRST, SECOND = "a" * 40, "b" * 40
INDEX = {"_class_name": "WanPipeline"}
FILES = {"model_index.json": 500, "transformer/x.safetensors": 10_000, "README.md": 100, "old.bin": 5_000}


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Return a hub with one model, whose newest commit and files can be changed."""
    import huggingface_hub
    from huggingface_hub import constants

    state = SimpleNamespace(sha=FIRST, files=FILES, here=set(), fetched=[], fails=None, index=INDEX)

    class Api:
        def model_info(self, name, revision=None, files_metadata=False):
            if state.fails:
                raise state.fails
            siblings = [SimpleNamespace(rfilename=path, size=size, lfs=None) for path, size in state.files.items()]
            return SimpleNamespace(sha=revision or state.sha, siblings=siblings)

    def snapshot_download(name, revision, allow_patterns, local_files_only=False):
        state.fetched.append((name, revision, tuple(allow_patterns), local_files_only))
        return str(tmp_path / "snapshot")

    def hf_hub_download(name, path, revision):
        (tmp_path / path).write_text(json.dumps(state.index))
        return str(tmp_path / path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, path, revision: "x" if path in state.here else None
    )
    return state


def test_a_model_is_read_at_the_commit_that_was_fetched(served, tmp_path):
    notes = []
    pulled = hub.pull("some/model", notes.append)
    assert (pulled.revision, pulled.size) == (FIRST, 10_500)
    assert "10.3 KiB" in notes[0]
    assert served.fetched == [("some/model", FIRST, hub.PATTERNS, False)]
    assert hub.pinned() == {"some/model": FIRST}
    assert find_model("some/model") == tmp_path / "snapshot"
    assert served.fetched[-1][1] == FIRST and served.fetched[-1][3]


def test_a_revision_that_moved_is_refused_and_can_be_taken(served):
    hub.pull("some/model", print)
    served.sha = SECOND
    with pytest.raises(ConfigError, match=f"moved from {FIRST[:12]} to {SECOND[:12]}.*some/model@{SECOND}"):
        hub.pull("some/model", print)
    assert hub.pinned() == {"some/model": FIRST}
    hub.pull(f"some/model@{SECOND}", print)
    assert hub.pinned() == {"some/model": SECOND}


def test_generate_downloads_what_is_not_here_and_pins_it(served, monkeypatch, capsys, tmp_path):
    from vidiff.cli.placing import fetched

    assert find_model("some/model", fetched) == tmp_path / "snapshot"
    assert hub.pinned() == {"some/model": FIRST} and len(served.fetched) == 1
    served.fails = OSError("no route")
    assert find_model("some/model", fetched) == tmp_path / "snapshot"  # nobody is asked for what is here
    with pytest.raises(CheckpointError, match="no route"):
        find_model(f"some/model@{SECOND}", fetched)


def test_too_little_room_names_what_is_needed_and_free(served, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_400))
    with pytest.raises(ResourceError, match=r"needed.*free.*HF_HOME"):
        hub.pull("some/model", print)
    assert not served.fetched
    served.here = {"model_index.json"}  # what is here needs no room: a broken fetch goes on
    hub.pull("some/model", print)
    assert served.fetched


def test_models_that_cannot_be_fetched_are_refused_in_one_line(served):
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        hub.pull("model", print)
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        hub.pull("some/model@main", print)
    served.files = {"pytorch_model.bin": 100}
    with pytest.raises(CheckpointError, match="pickled weights are never read"):
        hub.pull("some/model", print)
    served.fails = OSError("no route\nto the hub")
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(no route\)") as caught:
        hub.pull("some/model", print)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_read_are_refused_before_anything_large_is_fetched(served):
    served.index = {"_class_name": "FluxPipeline"}
    with pytest.raises(CheckpointError, match=r"some/model: is a FluxPipeline, which cannot be read.*WanPipeline"):
        hub.pull("some/model", print)
    served.index = INDEX | {"text_encoder": ["their_code", "UMT5EncoderModel"]}
    with pytest.raises(CheckpointError, match="code of its own"):
        hub.pull("some/model", print)
    served.files = {"diffusion_pytorch_model.safetensors": 10_000}
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        hub.pull("some/model", print)
    with pytest.raises(CheckpointError, match=r"Wan-AI/Wan2\.1-T2V-1\.3B-Diffusers is$"):
        hub.pull("Wan-AI/Wan2.1-T2V-1.3B", print)
    assert not served.fetched and hub.pinned() == {}


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"some/model": "main"})])
def test_damaged_pins_are_refused(served, text):
    hub.pins_path().parent.mkdir(parents=True)
    hub.pins_path().write_text(text)
    with pytest.raises(CheckpointError, match="delete it"):
        hub.pinned()


def test_pull_from_the_command_line(served, monkeypatch, capsys, tmp_path):
    from vidiff.cli.main import main

    monkeypatch.setattr(sys, "argv", ["vidiff", "models", "pull", "some/model"])
    main()
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'snapshot'}  {FIRST}\n" and FIRST[:12] in shown.err
