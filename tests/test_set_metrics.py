"""Values of whole sets: what they say of models that are known, at any numbers of clips."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import t

from vidiff.data.video_io import ClipInfo
from vidiff.errors import DataError
from vidiff.metrics import set_metrics
from vidiff.metrics.clip_set import ClipSet, SetClip
from vidiff.metrics.comparison import share_interval
from vidiff.metrics.evaluate import Tools, chosen
from vidiff.metrics.measuring import Measuring, Rows
from vidiff.metrics.pairwise import inception_score
from vidiff.metrics.preprocess import Preprocess
from vidiff.metrics.set_metrics import (
    MANIFOLD,
    frechet_values,
    inception_values,
    kernel_values,
    manifold_values,
)

NETWORK = SimpleNamespace(name="i3d", version="0" * 64, preprocess=Preprocess(frames=16))


@dataclass(frozen=True)
class Known(Measuring):
    """An evaluation of sets whose features are given."""

    rows: dict[str, Rows] = field(default_factory=dict)

    def features(self, one, extractor):
        return self.rows[one.label]


def known(fake, real, group=1, seed=0):
    rows = {label: Rows(values.astype(np.float32), group) for label, values in (("fake", fake), ("real", real))}
    info = ClipInfo(16, 64, 64, 8.0)
    sets = [
        ClipSet(label, tuple(SetClip(str(k), Path(f"{k}.mp4"), info, f"{label}{k}") for k in range(found.clips)))
        for label, found in rows.items()
    ]
    return Known(*sets, Path("cache"), seed=seed, rows=rows)


def drawn(n, width=8, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width))


def clips_of_like_frames(n, seed):
    """16 rows a clip, which hardly differ."""
    return np.repeat(drawn(n, 8, seed), 16, 0) + 0.05 * drawn(16 * n, 8, seed + 1)


@pytest.mark.parametrize(("n", "m"), [(64, 512), (512, 128), (100, 100)])
def test_an_ideal_model_is_at_the_floor_whatever_the_numbers_of_clips(n, m):
    found = manifold_values(known(drawn(n), drawn(m, seed=1)), NETWORK)
    assert [value.metric for value in found] == list(MANIFOLD)
    for value in found:
        size = min(n, m // 2)
        assert f"neighbors=5,subsets=10x{size},n={n},m={m}" in value.protocol
        assert abs(value.value - value.floor) < (0.25 if value.metric == "density" else 0.08)
        reach = np.hypot(value.interval[1] - value.value, 1.96 * value.floor_error)
        assert value.interval[0] <= value.value <= value.interval[1] and value.floor < value.value + 2 * reach


@pytest.mark.parametrize(("n", "m"), [(64, 512), (512, 128)])
def test_a_bad_model_is_off_the_floor_whatever_the_numbers_of_clips(n, m):
    far = {v.metric: v for v in manifold_values(known(drawn(n) + 1.5, drawn(m, seed=1)), NETWORK)}
    for value in far.values():
        assert value.interval[1] < value.floor - 1.96 * value.floor_error and value.value < 0.7 * value.floor
    collapsed = {v.metric: v for v in manifold_values(known(0.01 * drawn(n), drawn(m, seed=1)), NETWORK)}
    assert collapsed["precision"].value == 1 and collapsed["recall"].value < 0.05


def test_the_interval_of_a_share_near_one_is_not_narrower_than_that_of_so_many_clips():
    found = {v.metric: v for v in manifold_values(known(drawn(24), drawn(48, seed=1)), NETWORK)}
    for name in ("precision", "recall", "coverage"):
        low, high = share_interval(found[name].value, 24)
        assert found[name].interval[0] <= low and high <= found[name].interval[1] <= 1


def test_the_manifold_says_how_many_clips_it_needs_before_any_work():
    tools = Tools({"vidiff-evaluator": NETWORK})
    for n, m, word in (
        (11, 40, "12 generated clips or more.*fake has 11"),
        (40, 8, "12 real clips or more.*real has 8"),
    ):
        measuring = known(drawn(n), drawn(m))
        with pytest.raises(DataError, match=word):
            manifold_values(measuring, NETWORK)
        with pytest.raises(DataError, match=word):
            chosen(measuring, tools, ["recall"])
        assert not {*MANIFOLD} & {*chosen(measuring, tools, None)}
    least = known(drawn(12), drawn(12, seed=1))
    assert {*MANIFOLD} <= {*chosen(least, tools, None)} and len(manifold_values(least, NETWORK)) == 4


def test_clips_of_like_frames_are_no_kernel_distance_from_others_of_their_kind():
    found = [
        kernel_values(known(clips_of_like_frames(12, 4 * k), clips_of_like_frames(16, 4 * k + 2), 16, k), NETWORK)[0]
        for k in range(25)
    ]
    values = np.array([one.value for one in found])
    assert abs(values.mean()) < 3 * values.std() / 5 and (values < 0).any()
    assert np.mean([one.interval[0] <= 0 <= one.interval[1] for one in found]) > 0.9
    assert "subsets=100x12 clips of 16,n=12,m=16" in found[0].protocol


def test_the_interval_of_a_kernel_distance_of_frames_narrows_with_all_clips(monkeypatch):
    monkeypatch.setattr(set_metrics, "_SUBSET", 170)  # rows: 10 clips, which the last row would cut
    reaches = []
    for n in (40, 160):
        low, high = kernel_values(known(clips_of_like_frames(n, 0) + 0.5, clips_of_like_frames(n, 2), 16), NETWORK)[
            0
        ].interval
        reaches.append(high - low)
    assert 1.5 < reaches[0] / reaches[1] < 2.7


def test_the_frechet_distance_of_single_precision_rows_is_taken_in_double():
    fake, real = drawn(300) + 1e3, drawn(300, seed=1) + 1e3
    single, double = known(fake, real), known(fake, real)
    for label, rows in double.rows.items():
        double.rows[label] = Rows(rows.values.astype(np.float64), 1)
    assert frechet_values(single, NETWORK) == frechet_values(double, NETWORK)


def test_sets_of_which_not_as_many_frames_are_read_are_refused():
    measuring = known(drawn(64), drawn(128), group=4)
    measuring.rows["real"] = Rows(measuring.rows["real"].values, 8)
    for values in (frechet_values, kernel_values):
        with pytest.raises(DataError, match="4 frames of each clip, but 8 of the real ones; give --frames 4"):
            values(measuring, NETWORK)


def test_an_inception_score_of_few_clips_is_refused_since_it_is_always_one():
    tools = Tools({"i3d": NETWORK})
    for n in (2, 10, 19):
        with pytest.raises(DataError, match=f"20 clips or more, two in each of 10 splits.*fake has {n}"):
            inception_values(known(drawn(n), drawn(4)), NETWORK)
        with pytest.raises(DataError, match="20 clips"):
            chosen(known(drawn(n), drawn(4)), tools, ["inception-score"])
    assert chosen(known(drawn(20), drawn(4)), tools, ["inception-score"]) == ["inception-score"]


def test_the_interval_of_an_inception_score_is_students():
    measuring = known(2 * drawn(60, 5), drawn(4, 5))
    (found,) = inception_values(measuring, NETWORK)
    scores = inception_score(torch.from_numpy(measuring.rows["fake"].values), 10, measuring.seed)
    expected = t.interval(0.95, 9, scores.mean, scores.std / np.sqrt(10))
    assert found.value == scores.mean > 1 and found.interval == pytest.approx(expected, rel=1e-4)
