"""Features on disk."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from vidiff.errors import ConfigError, DataError, NumericalError
from vidiff.metrics import feature_cache
from vidiff.metrics.feature_cache import features_of, frames_key
from vidiff.metrics.preprocess import Preprocess

SMALL = Preprocess(frames=2, size=4, pixels="raw")


@dataclass
class Means:
    """An extractor that is arithmetic: the mean of each channel, of the clip or of each frame."""

    preprocess: Preprocess = SMALL
    name: str = "means"
    version: str = "1"
    per_frame: bool = False
    fails_after: int | None = None
    seen: list = field(default_factory=list)  # how many clips each call had
    dim = 3

    def __call__(self, clips):
        clips = list(clips)
        if self.fails_after is not None and sum(self.seen) >= self.fails_after:
            raise KeyboardInterrupt
        self.seen.append(len(clips))
        prepared = [self.preprocess(clip).mean((2, 3)) for clip in clips]
        return torch.cat(prepared) if self.per_frame else torch.stack([frames.mean(0) for frames in prepared])


def clip(number, frames=3):
    return torch.full((frames, 4, 4, 3), number % 256).byte()


def named(*numbers):
    return [(f"{number:064x}", lambda number=number: clip(number)) for number in numbers]


def unread(*numbers):
    """The same clips, of which none may be read again."""

    def read():
        raise AssertionError("a clip was read that is in the cache")

    return [(key, read) for key, _ in named(*numbers)]


def values(rows):
    return [one[0, 0].item() for one in rows]


def shards(cache):
    return sorted(cache.rglob("*.safetensors"))


def test_a_second_run_reads_and_computes_nothing(tmp_path):
    first = list(features_of(named(1, 2, 3), Means(), tmp_path, batch=2))
    again = Means()
    second = list(features_of(unread(1, 2, 3), again, tmp_path))
    assert again.seen == [] and all(map(torch.equal, first, second))
    assert values(first) == [1, 2, 3] and first[0].shape == (1, 3) and first[0].dtype == torch.float32


def test_rows_come_in_the_order_of_the_clips_whatever_is_cached(tmp_path):
    list(features_of(named(4, 2), Means(), tmp_path))
    extractor, read = Means(), []

    def noted(number):
        read.append(number)
        return clip(number)

    order = (1, 1, 2, 3, 2, 1, 4, 5, 5, 2)
    clips = [(key, lambda number=number: noted(number)) for number, (key, _) in zip(order, named(*order), strict=True)]
    assert values(features_of(clips, extractor, tmp_path, batch=2)) == list(order)
    assert read == [1, 3, 5] and sum(extractor.seen) == 3


def test_frames_have_rows_of_their_own(tmp_path):
    extractor = Means(replace(SMALL, frames=None), per_frame=True)
    clips = [("a" * 64, lambda: clip(7, 2)), ("b" * 64, lambda: clip(8, 5))]
    for _ in range(2):
        assert [len(rows) for rows in features_of(clips, extractor, tmp_path)] == [2, 5]
    assert extractor.seen == [2]


def test_another_pixel_option_or_weight_is_a_miss(tmp_path):
    frames = clip(9)
    changed = frames.clone()
    changed[2, 3, 3, 2] += 1
    usual = Means()
    list(features_of([(frames_key(frames), lambda: frames)], usual, tmp_path))
    for shown, extractor in (
        (changed, usual),
        (frames.reshape(3, 2, 8, 3), usual),
        (frames, Means(version="2")),
        (frames, Means(name="other")),
        (frames, Means(replace(SMALL, start=1))),
        (frames, Means(replace(SMALL, filter="tf1"))),
        (frames, Means(replace(SMALL, pixels="unit"))),  # which its text does not show
    ):
        extractor.seen.clear()
        list(features_of([(frames_key(shown), lambda shown=shown: shown)], extractor, tmp_path))
        assert extractor.seen == [1], extractor
    usual.seen.clear()
    assert values(features_of([(frames_key(frames.clone()), lambda: frames)], usual, tmp_path)) == [9]
    assert usual.seen == []


def flipped(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda data: data[:-7], lambda data: data[:5], lambda data: b""],
    ids=["bit", "end", "head", "all"],
)
def test_a_damaged_file_is_noted_and_computed_again(tmp_path, damage):
    for number in (1, 2):
        list(features_of(named(number, number + 10), Means(), tmp_path))
    bad, _ = shards(tmp_path)
    bad.write_bytes(damage(bad.read_bytes()))
    notes, extractor = [], Means()
    assert values(features_of(named(1, 11, 2, 12), extractor, tmp_path, note=notes.append)) == [1, 11, 2, 12]
    assert sum(extractor.seen) == 2 and len(notes) == 1 and str(bad) in notes[0]
    extractor.seen.clear()
    list(features_of(unread(1, 11, 2, 12), extractor, tmp_path, note=notes.append))
    assert extractor.seen == [] and len(notes) == 1


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    list(features_of(named(1), Means(), tmp_path))
    growing = shards(tmp_path)[0].with_name(".tmp-1-abc.safetensors")
    growing.write_bytes(b"half of it")
    notes = []
    list(features_of(unread(1), Means(), tmp_path, note=notes.append))
    assert notes == [] and growing.exists()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    extractor = Means(fails_after=4)
    with pytest.raises(KeyboardInterrupt):
        list(features_of(named(*range(9)), extractor, tmp_path, batch=2))
    extractor = Means()
    assert values(features_of(named(*range(9)), extractor, tmp_path, batch=2)) == list(range(9))
    assert sum(extractor.seen) == 9 - 4


def test_what_is_computed_is_kept_when_nobody_wants_the_rest(tmp_path):
    rows = features_of(named(*range(9)), Means(), tmp_path, batch=2)
    next(rows)
    rows.close()
    extractor = Means()
    list(features_of(named(*range(9)), extractor, tmp_path))
    assert sum(extractor.seen) == 9 - 2


def test_many_clips_are_few_files_and_written_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_SHARD", 50)
    rows = features_of(named(*range(180)), Means(), tmp_path, batch=10)
    for _ in range(111):
        next(rows)
    assert len(shards(tmp_path)) == 2  # a killed process would lose the rest only
    assert values(rows) == list(range(111, 180))
    assert len(shards(tmp_path)) == 4


def test_no_more_clips_than_a_batch_are_in_memory(tmp_path):
    extractor, read = Means(), []

    def counted(number):
        read.append(number)
        assert len(read) - sum(extractor.seen) <= 3
        return clip(number)

    clips = ((f"{number:064x}", lambda number=number: counted(number)) for number in range(20))
    assert values(features_of(clips, extractor, tmp_path, batch=3)) == list(range(20))
    assert extractor.seen == [3] * 6 + [2]


def test_known_clips_do_not_wait_for_others(tmp_path):
    list(features_of(named(1, 2), Means(), tmp_path))
    rows = features_of([*unread(1, 2), ("f" * 64, lambda: pytest.fail("read too early"))], Means(), tmp_path)
    assert values([next(rows), next(rows)]) == [1, 2]


def test_progress_counts_every_clip(tmp_path):
    for clips in (named(1, 2, 2, 3), unread(1, 2, 2, 3)):
        told = []
        list(features_of(clips, Means(), tmp_path, batch=2, on_clip=told.append))
        assert told == [1, 2, 3, 4]


WRITER = """
import sys
from pathlib import Path
from tests.test_feature_cache import Means, named, values
from vidiff.metrics import feature_cache
feature_cache._SHARD = 1
print("ready", flush=True)
sys.stdin.readline()
rows = feature_cache.features_of(named(*range(40)), Means(), Path(sys.argv[1]), batch=1)
assert values(rows) == list(range(40))
"""


def test_two_processes_that_write_at_once_do_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_SHARD", 1)
    other = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("go\n")
    other.stdin.flush()
    assert values(features_of(named(*range(40)), Means(), tmp_path, batch=1)) == list(range(40))
    other.communicate(timeout=300)
    assert other.returncode == 0
    notes = []
    assert values(features_of(unread(*range(40)), Means(), tmp_path, note=notes.append)) == list(range(40))
    assert notes == [] and len(shards(tmp_path)) == 40 == len(list(tmp_path.rglob("*.*")))


def test_features_that_are_not_finite_are_never_kept(tmp_path):
    class Infinite(Means):
        def __call__(self, clips):
            return super().__call__(clips) / 0

    with pytest.raises(NumericalError, match=f"means: features of the clip {1:064x} are not finite"):
        list(features_of(named(1), Infinite(), tmp_path))
    assert shards(tmp_path) == []


def test_a_short_clip_is_named_by_its_number(tmp_path):
    clips = [*named(1, 2), ("c" * 64, lambda: clip(3, frames=1))]
    with pytest.raises(DataError, match="clip 3: the clip has 1 frames"):
        list(features_of(clips, Means(), tmp_path))
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        list(features_of(clips, Means(), tmp_path, batch=0))
