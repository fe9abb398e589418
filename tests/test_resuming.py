"""A fetch that broke off goes on within the file, from a hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

COMMIT = "a" * 40
LARGE = os.urandom(3 << 20)
DIGEST = hashlib.sha256(LARGE).hexdigest()
INDEX = json.dumps({"_class_name": "WanPipeline"}).encode()
FILES = {"model_index.json": INDEX, "transformer/weights.safetensors": LARGE}


class Hub(BaseHTTPRequestHandler):
    """As the hub answers for one repository. ``server.breaks`` is after how many bytes a large file's answer ends."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/some/model/tree/"):
            return self.answer(json.dumps(self.listed()).encode(), {"Content-Type": "application/json"})
        if path.startswith("/api/models/some/model"):
            return self.answer(json.dumps(self.described()).encode(), {"Content-Type": "application/json"})
        if path.startswith("/store/"):
            return self.answer_large()
        name = path.removeprefix(f"/some/model/resolve/{COMMIT}/")
        content = FILES[name]
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest if content is LARGE else digest[:40]}"'}
        if content is not LARGE:
            return self.answer(content, headers)
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(LARGE))}
        self.send_response(302)
        for key, value in (
            headers | {"Location": f"{self.server.store}/store/{DIGEST}", "Content-Length": "0"}
        ).items():
            self.send_header(key, value)
        self.end_headers()

    def described(self):
        siblings = [{"rfilename": name, "size": len(content)} for name, content in FILES.items()]
        siblings[1]["lfs"] = {"sha256": DIGEST, "size": len(LARGE), "pointerSize": 100}
        return {"id": "some/model", "modelId": "some/model", "sha": COMMIT, "siblings": siblings}

    def listed(self):
        oids = [hashlib.sha1(content).hexdigest() for content in FILES.values()]
        return [
            {"type": "file", "path": one["rfilename"], "size": one["size"], "oid": oid}
            | ({"lfs": {"oid": DIGEST, "size": len(LARGE), "pointerSize": 100}} if "lfs" in one else {})
            for one, oid in zip(self.described()["siblings"], oids, strict=True)
        ]

    def answer(self, content, headers, status=200):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def answer_large(self):
        asked = self.headers.get("Range")
        self.server.asked.append((asked, self.headers.get("Authorization")))
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(LARGE) - 1}/{len(LARGE)}")
        self.send_header("Content-Length", str(len(LARGE) - begin))
        self.end_headers()
        end = begin + self.server.breaks if self.server.breaks else len(LARGE)
        self.wfile.write(self.server.content[begin:end])
        self.close_connection = True


@pytest.fixture
def server():
    served = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    served.asked, served.breaks, served.ranges, served.content = [], 0, True, LARGE
    # Another host than the hub's, to which no token may go.
    served.store = f"http://localhost:{served.server_port}"
    Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()


def pull(server, tmp_path, name="some/model"):
    places = {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_TOKEN": "hf_secret"}
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-m", "vidiff", "models", "pull", name],
        env=os.environ | places | hub,
        capture_output=True,
        text=True,
    )


def weights(tmp_path):
    return [path.read_bytes() for path in (tmp_path / "hf").rglob("weights.safetensors")]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_fetch_goes_on_where_it_broke_off(server, tmp_path, ranges):
    server.breaks, server.ranges = 1_000_000, ranges
    broken = pull(server, tmp_path)
    assert broken.returncode == 2 and "ended after 1000000 of 3145728 bytes" in broken.stderr, broken.stderr
    assert "Traceback" not in broken.stderr and not weights(tmp_path)
    assert not (tmp_path / "cache" / "vidiff" / "models.json").exists()
    server.breaks = 0
    whole = pull(server, tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "3.0 MiB, of which 2.0 MiB are still to be fetched" in whole.stderr
    assert server.asked == [(None, None), ("bytes=1000000-", None)]
    assert weights(tmp_path) == [LARGE]
    assert not list((tmp_path / "hf").rglob("*.part"))
    again = pull(server, tmp_path)
    assert again.returncode == 0 and len(server.asked) == 2


def test_what_is_not_as_promised_is_not_kept(server, tmp_path):
    server.content = bytes(len(LARGE))
    damaged = pull(server, tmp_path)
    assert damaged.returncode == 2 and "transformer/weights.safetensors came damaged" in damaged.stderr
    assert not weights(tmp_path) and not list((tmp_path / "hf").rglob("*.part"))
    server.content = LARGE
    assert pull(server, tmp_path).returncode == 0 and weights(tmp_path) == [LARGE]
