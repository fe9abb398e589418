"""The arena: two clips of one prompt side by side, in a browser, and nobody knows which model made which.

Votes go to a file of lines, one for each answer; the last line on a pair holds, so that an answer can be taken back
and a later arena goes on where this one stopped.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

from vidiff.data.video_io import read_clip
from vidiff.errors import ConfigError, DataError, ResourceError, UserError
from vidiff.files import append_line
from vidiff.metrics.comparison import Vote
from vidiff.metrics.pairing import paired
from vidiff.metrics.results import Clip, Results
from vidiff.metrics.web_clips import encoded

CHOICES = ("left", "right", "tie", "skip")
_UNDONE = "undone"
_LOOPBACK = ("127.0.0.1", "localhost")
_MAX_BODY = 1000  # bytes of a request
_MAX_SECONDS = 86_400.0
_MAX_CLIP = 8_000_000  # bytes of a clip on the page
_LENGTH = re.compile(r"\d{1,9}", re.ASCII)
_CLIP_PATH = re.compile(r"/clip/(\d{1,9})/(left|right)", re.ASCII)
_PAGES = {
    "/": ("arena.html", "text/html; charset=utf-8"),
    "/arena.js": ("arena.js", "text/javascript; charset=utf-8"),
    "/report.css": ("report.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Contender:
    """A clip and the model that made it."""

    model: str
    path: Path


@dataclass(frozen=True)
class Pair:
    """Two models' clips of one prompt."""

    key: str  # of the prompt and seed; the same for other pairs of models
    prompt: str
    clips: tuple[Contender, Contender]

    @property
    def identity(self) -> tuple[str, ...]:
        """Return what tells this pair from all others, whichever side its clips are on."""
        return (self.key, *sorted(clip.model for clip in self.clips))


@dataclass(frozen=True)
class Answer:
    """One line of the file of votes."""

    key: str
    left: str  # model
    right: str
    winner: str  # one of `CHOICES`, or "undone"
    seconds: float  # from seeing both clips to the answer

    @property
    def identity(self) -> tuple[str, ...]:
        """Return the pair that this is about, as `Pair.identity`."""
        return (self.key, *sorted((self.left, self.right)))


def pairs_of(results: Sequence[Results]) -> list[Pair]:
    """Return every two models' clips that belong together, see `vidiff.metrics.pairing`."""
    found = []
    for a, b in combinations(results, 2):
        before: Counter[str] = Counter()
        for mine, other in paired(a.clips, b.clips):
            sides = Contender(a.label, Path(mine.path)), Contender(b.label, Path(other.path))
            key = _key(mine, other)
            found.append(Pair(f"{key}, {before[key]}" if before[key] else key, mine.prompt, sides))
            before[key] += 1
    return found


def _key(mine: Clip, other: Clip) -> str:
    """Return what a pair of clips is called in the file of votes, where several may be called the same."""
    if not mine.prompt:
        return mine.key
    return mine.prompt if mine.seed is None or mine.seed != other.seed else f"{mine.prompt} #{mine.seed}"


def read_votes(path: Path) -> list[Vote]:
    """Return the vote on each pair that was judged; one that was skipped is none.

    Raises:
        DataError: if the file cannot be read, or a line is not a vote.
    """
    scores = {"left": 1.0, "right": 0.0, "tie": 0.5}
    answers = _standing(_lines(path)).values()
    return [Vote(answer.left, answer.right, scores[answer.winner]) for answer in answers if answer.winner in scores]


def serve(
    pairs: Sequence[Pair],
    out: Path,
    port: int = 0,
    host: str = "127.0.0.1",
    seed: int = 0,
    note: Callable[[str], None] = print,
) -> None:
    """Show ``pairs`` in a browser on this machine until interrupted; see `arena_server`."""
    with arena_server(pairs, out, port, host, seed) as server:
        note(f"http://{host}:{server.server_address[1]}/ shows {len(pairs)} pairs; votes go to {out}; Ctrl-C ends it")
        server.serve_forever()


def arena_server(
    pairs: Sequence[Pair], out: Path, port: int = 0, host: str = "127.0.0.1", seed: int = 0
) -> ThreadingHTTPServer:
    """Return a server of the arena that is bound, and does not run yet.

    Args:
        pairs: what to show.
        out: file of votes; those that it holds already are not asked for again.
        port: 0 takes a free one.
        host: a loopback name.
        seed: of the order of the pairs and of the sides of their clips.

    Raises:
        ConfigError: if ``host`` is not a loopback name.
        DataError: if there are no pairs, a pair is there twice, a clip is missing, or ``out`` holds something else.
        ResourceError: if the port cannot be had.
    """
    if host not in _LOOPBACK:
        raise ConfigError(f"{host}: the arena serves this machine only, as {' or '.join(_LOOPBACK)}; tunnel to it")
    arena = _Arena(pairs, out, seed)
    try:
        return ThreadingHTTPServer((host, port), partial(_Handler, arena))
    except (OSError, OverflowError) as error:
        raise ResourceError(f"port {port} of {host} cannot be had ({error}); take another one, or 0 for any") from error


class _Arena:
    """Which pair is to be judged, and what was said of the others."""

    def __init__(self, pairs: Sequence[Pair], out: Path, seed: int) -> None:
        _check(pairs)
        self._out, self._lock = out, threading.RLock()
        # Order and sides hang on the pair and the seed alone: neither more pairs nor another start change them.
        digests = {pair: hashlib.sha256(json.dumps([seed, *pair.identity]).encode()).digest() for pair in pairs}
        self.pairs = sorted(pairs, key=digests.__getitem__)
        self.sides = [
            sorted(pair.clips, key=lambda clip: clip.model, reverse=bool(digests[pair][-1] % 2)) for pair in self.pairs
        ]
        self._asked = {pair.identity for pair in pairs}
        self._held = _standing(_lines(out)) if out.exists() else {}

    def state(self) -> dict[str, Any]:
        """Return what the page may know now: models only after the last answer."""
        with self._lock:
            answers = self._answers()
            state = {
                "total": len(self.pairs),
                "answered": len(answers),
                "skipped": sum(answer.winner == "skip" for answer in answers),
            }
            waiting = [i for i, pair in enumerate(self.pairs) if pair.identity not in self._held]
            if not waiting:
                return state | {"tally": _tally(answers)}
            return state | {"pair": waiting[0], "prompt": self.pairs[waiting[0]].prompt, "soon": waiting[1:2]}

    def answer(self, index: int, choice: str, seconds: float) -> bool:
        """Write an answer down; return False if another pair is to be judged, as after a key was hit twice."""
        with self._lock:
            if self.state().get("pair") != index:
                return False
            left, right = self.sides[index]
            self._write(Answer(self.pairs[index].key, left.model, right.model, choice, round(seconds, 2)))
            return True

    def undo(self) -> None:
        """Take the latest answer back, if there is one."""
        with self._lock:
            for answer in self._answers()[-1:]:
                self._write(replace(answer, winner=_UNDONE))

    def _answers(self) -> list[Answer]:
        return [answer for answer in self._held.values() if answer.identity in self._asked]

    def _write(self, answer: Answer) -> None:
        append_line(self._out, json.dumps(asdict(answer)))
        _apply(self._held, answer)


class _Handler(BaseHTTPRequestHandler):
    """Answers the page. Nothing of a URL reaches the file system: pages and clips are looked up in what is known."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vidiff", ""
    timeout = 60  # seconds for a request

    def __init__(self, arena: _Arena, *args: Any) -> None:
        self._arena = arena
        super().__init__(*args)

    def do_GET(self) -> None:
        """Send a page, the state or a clip."""
        clip = _CLIP_PATH.fullmatch(self.path)
        if not self._is_local():
            self._send(HTTPStatus.FORBIDDEN, {"error": "the arena answers this machine only"})
        elif self.path == "/state":
            self._send(HTTPStatus.OK, self._arena.state())
        elif self.path in _PAGES:
            name, kind = _PAGES[self.path]
            self._send(HTTPStatus.OK, files("vidiff.metrics").joinpath(name).read_bytes(), kind)
        elif clip and int(clip[1]) < len(self._arena.pairs):
            self._send_clip(self._arena.sides[int(clip[1])][clip[2] == "right"].path)
        else:
            self._send(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})

    def do_POST(self) -> None:
        """Take an answer, or take the latest one back; send the new state."""
        length = self.headers.get("Content-Length", "")
        if not self._is_local():
            self._refuse(HTTPStatus.FORBIDDEN, "the arena answers this machine only")
        elif self.headers.get_content_type() != "application/json":
            # Pages of other sites may send forms here, and no JSON.
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only JSON is understood")
        elif not _LENGTH.fullmatch(length) or int(length) > _MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request holds at most {_MAX_BODY} bytes")
        else:
            self._answer(self.rfile.read(int(length)))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""

    def _answer(self, body: bytes) -> None:
        try:
            if self.path == "/undo":
                self._arena.undo()
                done = True
            elif self.path == "/vote":
                done = self._arena.answer(*_parsed(body))
            else:
                self._send(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})
                return
        except ResourceError as error:  # the disk is full, say: nothing was recorded
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        except (ValueError, RecursionError):
            self._send(HTTPStatus.BAD_REQUEST, {"error": "not an answer"})
        else:
            self._send(HTTPStatus.OK if done else HTTPStatus.CONFLICT, self._arena.state())

    def _send_clip(self, path: Path) -> None:
        try:
            self._send(HTTPStatus.OK, _playable(path), "video/mp4")
        except UserError:  # its text would name the model
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "this clip cannot be read"})

    def _is_local(self) -> bool:
        # A site whose name is made to point here could read everything otherwise; a tunnel has another port.
        return self.headers.get("Host", "").split(":")[0] in _LOOPBACK

    def _refuse(self, status: HTTPStatus, error: str) -> None:
        self.close_connection = True  # the body was not read
        self._send(status, {"error": error})

    def _send(self, status: HTTPStatus, content: dict[str, Any] | bytes, kind: str = "application/json") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (_HEADERS | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _parsed(body: bytes) -> tuple[int, str, float]:
    """Return pair, choice and seconds of a vote; raises ValueError if it is none."""
    found = json.loads(body)
    if not isinstance(found, dict) or found.keys() != {"pair", "choice", "seconds"}:
        raise ValueError("a vote has a pair, a choice and seconds")
    pair, choice, seconds = found["pair"], found["choice"], found["seconds"]
    if type(pair) is not int or choice not in CHOICES or type(seconds) not in (int, float):
        raise ValueError("a pair is a number, a choice a word and seconds a number")
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError("nobody looks that long")
    return pair, choice, float(seconds)


@lru_cache(maxsize=8)  # both clips of this pair, of the next, and of those that undo may show again
def _playable(path: Path) -> bytes:
    """Return a clip encoded anew, since files of different makers could be told apart, and their titles name them."""
    return encoded(read_clip(path), _MAX_CLIP)


def _check(pairs: Sequence[Pair]) -> None:
    if not pairs:
        raise DataError("nothing to compare: no two models have clips of the same key")
    identity, count = Counter(pair.identity for pair in pairs).most_common(1)[0]
    if count > 1 or len(set(identity[1:])) < 2:
        raise DataError(f"clip {identity[0]}: compare two different models, once; got {' and '.join(identity[1:])}")
    for pair in pairs:
        for clip in pair.clips:
            if not clip.path.is_file():
                raise DataError(f"{clip.path}: no such clip, made by {clip.model} for {pair.key}")


def _lines(path: Path) -> list[Answer]:
    """Return the answers of a file as they were written."""
    answers = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no votes of an arena: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.endswith("}"):
            continue  # torn: the arena was killed while it wrote, and asks again
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{number}: not a vote: {error}") from error
        if answer.winner not in (*CHOICES, _UNDONE):
            raise DataError(f"{path}:{number}: not a vote: the winner is {answer.winner!r}")
        answers.append(answer)
    return answers


def _standing(answers: Sequence[Answer]) -> dict[tuple[str, ...], Answer]:
    """Return the answers that hold, by pair, the latest one last."""
    held: dict[tuple[str, ...], Answer] = {}
    for answer in answers:
        _apply(held, answer)
    return held


def _apply(held: dict[tuple[str, ...], Answer], answer: Answer) -> None:
    held.pop(answer.identity, None)
    if answer.winner != _UNDONE:
        held[answer.identity] = answer


def _tally(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return for each two models how often each was better, and ties."""
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for answer in answers:
        # Not by the sides' names: those were drawn anew for each pair.
        better = {"left": answer.left, "right": answer.right}.get(answer.winner)
        models = tuple(sorted((answer.left, answer.right)))
        name = "ties" if better is None else "first" if better == models[0] else "second"
        counts.setdefault(models, Counter())[name] += answer.winner != "skip"
    return [
        {"models": models, "wins": [count["first"], count["second"]], "ties": count["ties"]}
        for models, count in sorted(counts.items())
    ]
