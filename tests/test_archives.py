"""Networks from TorchScript archives: by path or URL, and only by their sha256."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from vidiff.errors import ConfigError, ResourceError
from vidiff.metrics.archives import fetched
from vidiff.metrics.tools import Reading, build_tools


class FakeRAFT(nn.Module):
    """Says first that nothing moves, then that all does: by a hundredth of the width, from a mean of the frames."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
        assert first.shape[2] % 8 == 0 and first.shape[3] % 8 == 0
        still = torch.zeros_like(first[:, :2])
        return [still, still + (second - first).mean()]


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    torch.jit.script(FakeRAFT()).save(folder / "raft.pt")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/raft.pt", folder / "raft.pt"
        server.shutdown()


def test_a_url_is_fetched_once_and_only_what_its_sha256_says_is_kept(served, tmp_path):
    url, path = served
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = fetched("raft", url, digest)
    assert found.read_bytes() == path.read_bytes() and found.is_relative_to(tmp_path / "cache")
    with pytest.raises(ConfigError, match=f"has sha256 {digest}, not 0000.*not kept"):
        fetched("raft", url, "0" * 64)
    with pytest.raises(ConfigError, match="takes the sha256"):
        fetched("raft", url, "")
    with pytest.raises(ResourceError, match="--weights raft=PATH@SHA256"):
        fetched("raft", url + "x", "1" * 64)
    assert [file.name for file in found.parent.iterdir()] == [digest]
    path.unlink()
    assert fetched("raft", url, digest) == found


@pytest.mark.parametrize("side", [30, 300])
def test_raft_is_given_what_it_takes_and_its_last_flow_counts(served, side):
    url, path = served
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    estimator = build_tools({"raft": f"{url}@{digest}"}).flow
    dark = torch.zeros(9, side, side + 6, 3, dtype=torch.uint8)
    flow = estimator(dark, dark + 51)  # lighter by 0.4 of [-1, 1]
    factor = -(-256 // side)
    assert flow.shape == (9, side, side + 6, 2)
    torch.testing.assert_close(flow, torch.full_like(flow, 0.4 / factor))
    assert estimator.flow_name == f"raft@sha256:{digest[:12]},256"


def test_raft_without_a_sha256_says_why(served):
    with pytest.raises(ConfigError, match="code that would run here"):
        build_tools({"raft": str(served[1])})


def test_each_fvd_protocol_has_its_published_divisor():
    divisors = {protocol: Reading(protocol).i3d_ddof for protocol in ("styleganv", "cdfvd", "original")}
    assert divisors == {"styleganv": 0, "cdfvd": 0, "original": 1}
