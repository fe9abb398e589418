"""The arena over real HTTP: what it records, what it hides, and what it refuses."""

import http.client
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from vidiff.cli.evaluating import contenders
from vidiff.data.metadata import read_metadata
from vidiff.data.toyworld.write import ToyClips, write_shards
from vidiff.data.video_io import read_clip
from vidiff.data.video_write import write_video
from vidiff.errors import ConfigError, DataError, ResourceError
from vidiff.metrics import arena
from vidiff.metrics.arena import Contender, Pair, arena_server, pairs_of, read_votes
from vidiff.metrics.comparison import Vote
from vidiff.metrics.results import Clip, Results
from vidiff.types import Size

RED, BLUE = "modelred", "modelblue"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A clip of each model, in its color, that names the model inside."""
    folder = tmp_path_factory.mktemp("clips")
    for name, color in ((RED, (200, 30, 30)), (BLUE, (30, 30, 200))):
        clip = np.full((4, 32, 32, 3), color, np.uint8)
        clip[:, :8] = 90
        write_video(folder / f"{name}.mp4", clip, 12, metadata={"model": name})
    return {name: folder / f"{name}.mp4" for name in (RED, BLUE)}


def pairs(clips, count=3):
    contenders = (Contender(RED, clips[RED]), Contender(BLUE, clips[BLUE]))
    return [Pair(f"key{i}", f"prompt {i}", contenders) for i in range(count)]


class Client:
    """What a browser sends, with everything that it was ever sent."""

    def __init__(self, server):
        self.port, self.seen = server.server_address[1], b""

    def __call__(self, path, body=None, status=200, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
        headers = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, path, data, ({"Content-Type": "application/json"} if data else {}) | headers)
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        self.seen += found + str(answer.headers).encode()
        assert answer.status == status, found
        return json.loads(found) if answer.headers.get_content_type() == "application/json" else found

    def vote(self, choice="left", status=200):
        return self("/vote", {"pair": self("/state")["pair"], "choice": choice, "seconds": 1.5}, status)


@contextmanager
def running(*args, **kwargs):
    with arena_server(*args, **kwargs) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_votes_are_recorded_for_the_model_on_that_side(clips, tmp_path):
    out = tmp_path / "votes.jsonl"
    with running(pairs(clips), out) as client:
        assert client("/state").items() >= {"total": 3, "answered": 0, "pair": 0}.items()
        shown = {side: read_clip(client(f"/clip/0/{side}")).frames[0, 20, 16] for side in ("left", "right")}
        client.vote("left")
        client.vote("tie")
        assert client.vote("skip")["answered"] == 3
    first, second, third = lines(out)
    assert {side: RED if pixel[0] > pixel[2] else BLUE for side, pixel in shown.items()} == {
        "left": first["left"],
        "right": first["right"],
    }
    assert (first["winner"], second["winner"], third["winner"]) == ("left", "tie", "skip")
    assert first["seconds"] == 1.5 and {row["key"] for row in lines(out)} == {"key0", "key1", "key2"}
    assert read_votes(out) == [
        Vote(first["left"], first["right"], 1),
        Vote(second["left"], second["right"], 0.5),
    ]


def test_a_vote_for_the_right_names_the_right(clips, tmp_path):
    with running(pairs(clips, 1), tmp_path / "votes.jsonl") as client:
        client.vote("right")
    (row,) = lines(tmp_path / "votes.jsonl")
    assert read_votes(tmp_path / "votes.jsonl") == [Vote(row["left"], row["right"], 0)]


def test_nothing_names_a_model_before_the_last_vote(clips, tmp_path):
    assert read_metadata(clips[RED]) == {"model": RED}
    with running(pairs(clips), tmp_path / "votes.jsonl") as client:
        for path in ("/", "/arena.js", "/report.css", "/state", "/clip/0/left", "/clip/0/right", "/clip/2/left"):
            client(path)
        client("/clip/7/left", status=404)
        client.vote("left")
        client.vote("right")
        assert RED.encode() not in client.seen and BLUE.encode() not in client.seen
        state = client.vote("tie")
    first, second, _ = lines(tmp_path / "votes.jsonl")
    winners = [first["left"], second["right"]]
    assert state["tally"] == [
        {"models": [BLUE, RED], "wins": [winners.count(BLUE), winners.count(RED)], "ties": 1},
    ]


def test_an_answer_can_be_taken_back(clips, tmp_path):
    out = tmp_path / "votes.jsonl"
    with running(pairs(clips), out) as client:
        assert client("/undo", {})["answered"] == 0
        client.vote("left")
        before = client("/state")
        client.vote("right")
        assert client("/undo", {}) == before
        client.vote("tie")
        client.vote("left")
        assert "tally" in client("/state") and client("/undo", {})["pair"] == 2
    assert [row["winner"] for row in lines(out)] == ["left", "right", "undone", "tie", "left", "undone"]
    assert [vote.score == 0.5 for vote in read_votes(out)] == [False, True]


def test_a_restart_goes_on_where_it_stopped(clips, tmp_path):
    out = tmp_path / "votes.jsonl"
    with running(pairs(clips), out, seed=3) as client:
        client.vote("left")
        before = client.vote("skip")
    with running(pairs(clips), out, seed=3) as client:
        assert client("/state") == before
        assert client("/undo", {})["pair"] == 1
    with running(pairs(clips, 5), out, seed=4) as client:  # more pairs, in another order: what was said holds
        assert client("/state").items() >= {"total": 5, "answered": 1}.items()
        assert client("/state")["prompt"] != f"prompt {lines(out)[0]['key'][3:]}"


def test_a_key_hit_twice_is_one_vote(clips, tmp_path):
    with running(pairs(clips), tmp_path / "votes.jsonl") as client:
        vote = {"pair": 0, "choice": "left", "seconds": 1}
        client("/vote", vote)
        assert client("/vote", vote, 409)["answered"] == 1
    assert len(lines(tmp_path / "votes.jsonl")) == 1


def test_order_and_sides_are_drawn_by_the_seed(clips, tmp_path):
    def drawn(seed, shown):
        with running(shown, tmp_path / f"{seed}.jsonl", seed=seed) as client:
            for _ in shown:
                client.vote()
        rows = [(row["key"], row["left"]) for row in lines(tmp_path / f"{seed}.jsonl")]
        (tmp_path / f"{seed}.jsonl").unlink()
        return rows

    shown = pairs(clips, 24)
    first = drawn(1, shown)
    swapped = [replace(pair, clips=pair.clips[::-1]) for pair in reversed(shown)]
    assert drawn(1, swapped) == first != drawn(2, shown)
    assert [key for key, _ in first] != [pair.key for pair in shown]
    assert 4 <= sum(left == RED for _, left in first) <= 20  # fair coins miss this once in 7,000 times


@pytest.mark.parametrize(
    "path",
    [
        "/clip/../../etc/passwd",
        "/../../../../etc/passwd",
        "/clip/0/../../../etc/passwd",
        "/clip/%2e%2e/passwd",
        "/clip/3/left",
        "/clip/-1/left",
        "/clip/0/middle",
        "/clip/0/left/",
        "/clip/99999999999999999999/left",
        "/arena.py",
        "/arena.html",
        "//etc/passwd",
        "/votes.jsonl",
    ],
)
def test_unknown_addresses_are_not_found(clips, tmp_path, path):
    with running(pairs(clips), tmp_path / "votes.jsonl") as client:
        assert client(path, status=404) == {"error": "there is no such page"}
        client(path, {}, status=404)


def test_only_this_machine_and_its_own_page_are_answered(clips, tmp_path):
    with running(pairs(clips), tmp_path / "votes.jsonl") as client:
        client("/state", Host="localhost:9999")  # through a tunnel
        for host in ("evil.example", "127.0.0.1.evil.example", ""):
            client("/state", Host=host, status=403)
            client("/undo", {}, Host=host, status=403)
        vote = {"pair": 0, "choice": "left", "seconds": 1}
        client("/vote", vote, 415, Content_Type="text/plain")
        client("/vote", vote | {"more": "x" * 2000}, 413)
        client("/vote", vote, 413, Content_Length="9" * 5000)
        client("/vote", vote, 413, Content_Length="-1")
        for wrong in (
            {"pair": True},
            {"pair": "0"},
            {"choice": "both"},
            {"choice": []},
            {"seconds": -1},
            {"seconds": "1"},
        ):
            client("/vote", vote | wrong, 400)
        for wrong in ([], {}, {"pair": 0}, vote | {"more": 1}, vote | {"seconds": float("nan")}):
            client("/vote", wrong, 400)
        with urllib.request.urlopen(f"http://127.0.0.1:{client.port}/") as page:
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not (tmp_path / "votes.jsonl").exists()


def test_a_clip_that_cannot_be_read_can_be_skipped_and_is_not_named(clips, tmp_path):
    bad = tmp_path / f"{RED}.mp4"
    bad.write_bytes(b"no clip")
    shown = [Pair("key", "", (Contender(RED, bad), Contender(BLUE, bad)))]
    with running(shown, tmp_path / "votes.jsonl") as client:
        client("/clip/0/left", status=500)
        assert RED.encode() not in client.seen
        client.vote("skip")
    assert read_votes(tmp_path / "votes.jsonl") == []


def test_a_torn_line_is_asked_again_and_other_damage_is_named(clips, tmp_path):
    out = tmp_path / "votes.jsonl"
    with running(pairs(clips), out) as client:
        client.vote()
        client.vote()
    out.write_text(out.read_text()[:-9])
    with running(pairs(clips), out) as client:
        assert client("/state")["pair"] == 1
        client.vote()
    assert len(read_votes(out)) == 2
    for wrong in ('{"key": "a"}', "[]}", json.dumps(lines_of_one() | {"winner": "both"})):
        out.write_text(f"{json.dumps(lines_of_one())}\n{wrong}\n")
        with pytest.raises(DataError, match=r"votes.jsonl:2: not a vote"):
            read_votes(out)
    with pytest.raises(DataError, match="no votes"):
        read_votes(tmp_path / "none.jsonl")


def lines_of_one():
    return {"key": "key0", "left": RED, "right": BLUE, "winner": "left", "seconds": 1.0}


def test_what_cannot_be_compared_is_refused(clips, tmp_path):
    out, shown = tmp_path / "votes.jsonl", pairs(clips)
    same = Pair("key", "", (Contender(RED, clips[RED]), Contender(RED, clips[BLUE])))
    missing = replace(same, clips=(same.clips[0], Contender(BLUE, tmp_path / "none.mp4")))
    for wrong, word in (([], "nothing"), (shown * 2, "once"), ([same], "two different"), ([missing], "none.mp4")):
        with pytest.raises(DataError, match=word):
            arena_server(wrong, out)
    with pytest.raises(ConfigError, match="this machine only"):
        arena_server(shown, out, host="0.0.0.0")
    with arena_server(shown, out) as server, pytest.raises(ResourceError, match="cannot be had"):
        arena_server(shown, out, port=server.server_address[1])


def test_pairs_are_all_models_clips_of_one_prompt_and_seed(clips):
    a, b, c = (
        Results(label, (), tuple(Clip(key, f"{label}-{key}.mp4", key.upper(), 3) for key in keys))
        for label, keys in (("a", "xyz"), ("b", "yz"), ("c", "z"))
    )
    found = [(pair.key, pair.prompt, *(str(clip.path) for clip in pair.clips)) for pair in pairs_of([a, b, c])]
    assert found == [
        ("Y #3", "Y", "a-y.mp4", "b-y.mp4"),
        ("Z #3", "Z", "a-z.mp4", "b-z.mp4"),
        ("Z #3", "Z", "a-z.mp4", "c-z.mp4"),
        ("Z #3", "Z", "b-z.mp4", "c-z.mp4"),
    ]


def test_clips_of_a_tool_that_records_no_seeds_meet_those_of_the_same_prompt_in_order():
    ours = Results("ours", (), tuple(Clip(f"x{seed}", f"{seed}.mp4", "a red ball", seed) for seed in (7, 8)))
    theirs = Results("theirs", (), tuple(Clip(name, f"{name}.mp4", "a red ball") for name in ("p", "q", "r")))
    found = {pair.key: tuple(clip.path.stem for clip in pair.clips) for pair in pairs_of([ours, theirs])}
    assert found == {"a red ball": ("7", "p"), "a red ball, 1": ("8", "q")}


def test_clips_of_one_seed_twice_are_two_pairs_and_of_other_prompts_none():
    a, b = (Results(s, (), tuple(Clip(f"{s}{k}", f"{s}{k}.mp4", "fox", 0) for k in range(2))) for s in "ab")
    found = [(pair.key, *(clip.path.stem for clip in pair.clips)) for pair in pairs_of([a, b])]
    assert found == [("fox #0", "a0", "b0"), ("fox #0, 1", "a1", "b1")]
    red, blue = (Results(s, (), (Clip("00000", f"{s}.mp4", s),)) for s in ("red", "blue"))
    assert pairs_of([red, blue]) == []


def test_clips_in_shards_are_refused_by_name(tmp_path):
    write_shards(ToyClips(2, Size(5, 16, 16, 12.0)), tmp_path / "packed")
    with pytest.raises(DataError, match=r"packed.*lies in a shard"):
        contenders([str(tmp_path / "packed")])


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_plays_both_clips_without_complaint(clips, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(arena._Handler, "log_message", lambda handler, *args: asked.append(handler.path))
    switches = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync enable-logging=stderr remote-debugging-port=0"
    )
    command = [CHROMIUM, *(f"--{switch}" for switch in switches.split()), f"--user-data-dir={tmp_path / 'profile'}"]
    with running(pairs(clips), tmp_path / "votes.jsonl") as client, (tmp_path / "log").open("w") as log:
        browser = subprocess.Popen([*command, f"http://127.0.0.1:{client.port}/"], stderr=log)
        try:
            deadline = time.monotonic() + 240  # of a busy machine
            # The next pair is fetched once both clips of this one play.
            while "/clip/1/right" not in asked and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            browser.terminate()
            browser.wait(60)
    assert "/clip/1/right" in asked and "/clip/2/left" not in asked
    assert "CONSOLE" not in (tmp_path / "log").read_text()
