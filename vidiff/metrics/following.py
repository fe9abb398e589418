"""Exact prompt following: clips are judged by rendering the alternatives, where the data says what they should show."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidiff.data.sprite_sheets import sheets_at
from vidiff.data.sprites import Character, character_of, stated_in, values_of
from vidiff.data.toyworld.attributes import SCENE_VALUES, THING_VALUES, Scene, Thing
from vidiff.errors import DataError, ResourceError
from vidiff.files import append_line
from vidiff.metrics.clip_metrics import partners_of
from vidiff.metrics.clip_set import SetClip
from vidiff.metrics.measuring import Measuring, short_hash
from vidiff.metrics.results import Value
from vidiff.metrics.sprite_oracle import judge_sprite
from vidiff.metrics.toyworld_oracle import judge

# Counted up when they judge otherwise.
_TOYWORLD, _SPRITES = "toyworld-oracle-2", "sprite-oracle-1"
_NEEDED = "--data with attributes, as vidiff data toyworld writes them, or sprites beside their sheets"


@dataclass(frozen=True)
class Question:
    """A clip, and what it should show."""

    clip: SetClip
    asked: Scene | Character
    stated: dict[str, str]
    sheets: Path | None = None  # the folder that characters are composed from

    @property
    def oracle(self) -> str:
        """Return the name of its judge."""
        return _TOYWORLD if isinstance(self.asked, Scene) else _SPRITES

    @property
    def digest(self) -> str:
        """Return a hash of all that decides the answer."""
        asked = self.asked.to_dict() if isinstance(self.asked, Scene) else asdict(self.asked)
        drawn = [sheets_at(self.sheets).digest] if self.sheets else []
        text = json.dumps([self.oracle, self.clip.digest, asked, self.stated, *drawn], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def chance(self) -> dict[str, float]:
        """Return how often a guess would be right about each stated attribute: once in as many values as it has."""
        if isinstance(self.asked, Scene):
            values = THING_VALUES | SCENE_VALUES
            return {name: 1 / len(values[name.split(".")[0]]) for name in self.stated}
        return {name: 1 / len(values_of(self.asked, name)) for name in self.stated}

    def answer(self) -> dict[str, bool]:
        """Return which stated attributes the clip shows; raises DataError if it cannot be read or judged."""
        frames, fps = self.clip.frames().numpy(), self.clip.info.fps
        try:
            if isinstance(self.asked, Scene):
                return judge(frames, fps, self.asked, self.stated).followed
            assert self.sheets is not None
            return judge_sprite(frames, fps, self.asked, self.stated, sheets_at(self.sheets)).followed
        except DataError as error:
            raise DataError(f"{self.clip.path or self.clip.key}: cannot be judged: {error}") from error


def missing_for_following(measuring: Measuring) -> str:
    """Return what judging takes and is not there, or nothing: real clips with attributes; sprites also their sheets."""
    if measuring.real is None:
        return f"it needs {_NEEDED}"
    for clip in measuring.real.clips:
        why = "" if _is_toy(clip.row) else _missing_of_sprite(clip)
        if why:
            return f"{measuring.real.label}, {clip.key}: {why}"
    return ""


def following_values(measuring: Measuring) -> list[Value]:
    """Return the share of what the captions state that clips show: over all, and of each kind of attribute.

    The floor is chance.

    Raises:
        DataError: if the data does not say what clips should show, or a clip has no partner in it.
    """
    missing = missing_for_following(measuring)
    if missing:
        raise DataError(f"following: {missing}")
    questions = questions_of(measuring)
    answers = list(_answers(measuring, questions))
    protocol = measuring.protocol(_oracles(questions), *_drawn_from(questions))
    shares = np.array([np.mean(list(answer.values())) for answer in answers])
    guessed = float(np.mean([np.mean(list(question.chance.values())) for question in questions]))
    found = [measuring.mean_value("following", protocol, shares, "higher", guessed, share=True)]
    kinds: dict[str, list[tuple[int, bool, float]]] = {}
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        for name, right in answer.items():
            kinds.setdefault(name.split(".")[0], []).append((index, right, question.chance[name]))
    for kind, rows in sorted(kinds.items()):
        found.append(_kind_value(measuring, kind, rows, protocol))
    return found


def questions_of(measuring: Measuring) -> list[Question]:
    """Return what each clip should show; raises DataError if nothing tells it of one."""
    real = measuring.against()
    partners = partners_of(measuring.generated, real)
    return [
        _question(clip, partner, real.label) for clip, partner in zip(measuring.generated.clips, partners, strict=True)
    ]


def scene_of(row: dict[str, Any]) -> Scene:
    """Return the scene that a row's attributes describe; its places are not known."""
    attributes = row["attributes"]
    try:
        things = tuple(Thing(**thing) for thing in attributes["objects"])
        return Scene(things, **{name: value for name, value in attributes.items() if name != "objects"})
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"attributes do not describe a toy-world scene: {error}") from error


def _kind_value(measuring: Measuring, kind: str, rows: list[tuple[int, bool, float]], protocol: str) -> Value:
    from vidiff.metrics.intervals import mean_interval

    owners, values, chances = (np.array(column) for column in zip(*rows, strict=True))
    ends = mean_interval(values, owners, measuring.seed, share=True) if len(set(owners.tolist())) > 1 else None
    told, mean = f"{protocol},stated={len(rows)}", float(values.mean())
    return Value(f"following-{kind}", told, mean, "higher", ends, float(chances.mean()))


def _is_toy(row: dict[str, Any]) -> bool:
    attributes = row.get("attributes")
    return isinstance(attributes, dict) and "objects" in attributes and isinstance(row.get("stated"), dict)


def _missing_of_sprite(clip: SetClip) -> str:
    """Return what a real clip lacks to be a sprite by which others are judged, or nothing."""
    attributes = clip.row.get("attributes")
    if not isinstance(attributes, dict) or not {"sex", "skin", "action"} <= attributes.keys():
        return f"has no attributes beside it; following needs {_NEEDED}"
    if not clip.prompt:
        return "has the attributes of a sprite but no caption, which says what can be asked for; put it beside them"
    sheets = _sheets_of(clip)
    return "" if sheets.is_dir() else f"is a sprite, judged by what its sheets draw; put their folder at {sheets}"


def _sheets_of(clip: SetClip) -> Path:
    """Return where the sheets of a sprite lie: beside its shard, or beside its file."""
    home = clip.source if isinstance(clip.source, Path) else clip.source.shard
    return home.parent / "sheets"


def _question(clip: SetClip, partner: SetClip, label: str) -> Question:
    try:
        if _is_toy(partner.row):
            return Question(clip, scene_of(partner.row), partner.row["stated"])
        asked = character_of(partner.row["attributes"])
        return Question(clip, asked, stated_in(_caption(clip, partner), asked), _sheets_of(partner))
    except DataError as error:
        raise DataError(f"{label}, {partner.key}: {error}") from error


def _caption(clip: SetClip, partner: SetClip) -> str:
    """Return the caption that a clip was made from: they leave out different attributes."""
    others = partner.row.get("alt_captions")
    return clip.prompt if isinstance(others, list) and clip.prompt in others else partner.prompt


def _drawn_from(questions: list[Question]) -> list[str]:
    """Return the parts of a protocol that say which sheets alternatives were composed from."""
    folders = {question.sheets for question in questions if question.sheets is not None}
    return sorted({f"sheets={short_hash(sheets_at(folder).digest)}" for folder in folders})


def _oracles(questions: list[Question]) -> str:
    return "+".join(sorted({question.oracle for question in questions}))


def _answers(measuring: Measuring, questions: list[Question]) -> Iterator[dict[str, bool]]:
    """Yield which stated attributes each clip shows; answers are kept on disk, and asked for once."""
    path = measuring.cache / f"{_oracles(questions)}.jsonl"
    known = _known(path)
    open_ones = {question.digest: question for question in questions if question.digest not in known}
    workers = measuring.workers or os.cpu_count() or 1
    with measuring.progress("judging clips", len(questions)) as on_clip:
        done = len(questions) - len(open_ones)
        on_clip(done)
        for digest, answer in _asked(open_ones, workers):
            known[digest] = answer
            append_line(path, json.dumps({"question": digest, "followed": answer}))
            done += 1
            on_clip(done)
    yield from (known[question.digest] for question in questions)


def _asked(questions: dict[str, Question], workers: int) -> Iterator[tuple[str, dict[str, bool]]]:
    if workers == 1 or len(questions) < 4:
        yield from map(_answer, questions.items())
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            for answer in as_completed([pool.submit(_answer, item) for item in questions.items()]):
                yield answer.result()
        except BrokenProcessPool as error:
            raise ResourceError(
                "following: a process that judges clips died, most likely for want of memory; free some and run again, "
                "which goes on from the answers so far, or leave following out of --metrics"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # what was not begun, if one clip cannot be judged


def _answer(item: tuple[str, Question]) -> tuple[str, dict[str, bool]]:
    digest, question = item
    return digest, question.answer()


def _known(path: Path) -> dict[str, dict[str, bool]]:
    """Return the answers of a file; a line that a kill tore is asked again."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found[row["question"]] = row["followed"]
        except (ValueError, KeyError, TypeError):
            continue
    return found
