"""The networks of an evaluation: what the user changes about how they read clips, and how their files are named."""

import pytest

from tests.test_extractors import archived, saved_dinov2
from vidiff.errors import ConfigError
from vidiff.metrics.extractors import FID_CLEAN
from vidiff.metrics.flow import RAFTFlow
from vidiff.metrics.tools import Reading, _config, build_tools


def test_networks_of_single_frames_are_given_frames_as_the_user_says():
    assert _config("inception", "x.pt@00", Reading(filter="pil-bicubic")).preprocess == FID_CLEAN
    for kind, size in (("dinov2", 448), ("clip", 336)):
        found = _config(kind, "folder", Reading(size=size, filter="bilinear", crop="squash")).preprocess
        assert str(found) == f"all frames,stride 1,{size} bilinear squash"


def test_what_was_changed_stands_where_protocol_lines_are_made_from(tmp_path):
    pytest.importorskip("transformers")
    saved_dinov2(tmp_path)
    reading = Reading(size=32, filter="bilinear-aa", crop="center", frames=4)
    extractor = build_tools({"dinov2": str(tmp_path)}, reading).extractors["dinov2"]
    assert str(extractor.preprocess) == "4f,stride 1,32 bilinear-aa center"


@pytest.mark.parametrize(
    ("reading", "word"),
    [(Reading(size=128), "inception reads frames of size 299"), (Reading(crop="center"), "give another --filter")],
)
def test_what_a_network_of_frames_cannot_read_is_refused(reading, word):
    with pytest.raises(ConfigError, match=word):
        _config("inception", "x.pt@00", reading)


def test_paths_may_hold_an_at_sign(tmp_path):
    from tests.test_archives import FakeRAFT

    path = tmp_path / "a@b" / "raft@2.pt"
    path.parent.mkdir()
    digest = archived(FakeRAFT(), path)
    assert isinstance(build_tools({"raft": f"{path}@{digest}"}).flow, RAFTFlow)
    with pytest.raises(ConfigError, match=f"allow it: --weights raft={path}@{digest}$"):
        build_tools({"raft": str(path)})
    assert _config("clip", str(path.parent), Reading()).source == str(path.parent)
    hub = _config("clip", f"openai/clip@{'0' * 40}", Reading())
    assert (hub.source, hub.revision) == ("openai/clip", "0" * 40)
