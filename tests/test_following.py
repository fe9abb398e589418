"""Metrics that take what clips should show: which real clip and prompt belong to a clip, and what stands in the way."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidiff.data.toyworld.write import ToyClips, write_folder
from vidiff.data.video_io import ClipInfo
from vidiff.errors import ConfigError, DataError, ResourceError
from vidiff.metrics.clip_metrics import Aligner, check_pairs, partners_of
from vidiff.metrics.clip_set import ClipSet, SetClip, open_clip_set
from vidiff.metrics.evaluate import Tools, chosen
from vidiff.metrics.following import _asked
from vidiff.metrics.measuring import Measuring
from vidiff.metrics.random_pyramid import RandomPyramid
from vidiff.types import Size

TOOLS = Tools(
    {"random-frames": RandomPyramid(per_frame=True)},
    {"alignment-evaluator": Aligner(RandomPyramid(), lambda prompts: torch.zeros(len(prompts), 2))},
)


def clip_set(label, clips, frames=16):
    """Return a set of clips that are nowhere: a name and a prompt of each."""
    info = ClipInfo(frames, 32, 32, 12.0)
    return ClipSet(label, tuple(SetClip(key, Path(key), info, key, prompt) for key, prompt in clips))


def numbered(prompts):
    return [(f"x{index}", prompt) for index, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(ToyClips(4, Size(16, 32, 32, 12), seed=5), folder)
    return open_clip_set(folder, label="data")


def left_out(made, data):
    notes = []
    measuring = Measuring(made, data, Path("nowhere"), note=notes.append)
    return chosen(measuring, TOOLS, None), notes, measuring


def test_following_is_left_out_with_a_note_where_partners_are_missing(data):
    prompts = [clip.prompt for clip in data.clips]
    names, notes, _ = left_out(clip_set("made", numbered(prompts)), data)
    assert "following" in names and "alignment-evaluator" in names and not notes
    names, notes, measuring = left_out(clip_set("made", numbered([*prompts[:3], "a fox"])), data)
    assert "following" not in names and "motion" in names
    assert len(notes) == 1 and notes[0].startswith("left out: following: made, x3: no real clip has its prompt")
    with pytest.raises(DataError, match="following: made, x3: no real clip has its prompt or its name"):
        chosen(measuring, TOOLS, ["following"])


def test_following_is_left_out_with_a_note_where_captions_are_doubled(data):
    first, *others = data.clips
    doubled = replace(data, clips=(first, *(replace(clip, prompt=first.prompt) for clip in others)))
    names, notes, _ = left_out(clip_set("made", [("x0", first.prompt)]), doubled)
    assert "following" not in names and "4 real clips have its prompt" in notes[-1]


def test_following_is_left_out_with_a_note_where_some_clips_have_no_attributes(data):
    first, *others = data.clips
    names, notes, _ = left_out(clip_set("made", [("x0", first.prompt)]), replace(data, clips=(first, SetClip(
        "bare", Path("bare"), first.info, "bare"), *others)))  # fmt: skip
    assert "following" not in names and "data, bare: has no attributes beside it" in notes[-1]


def test_alignment_is_left_out_with_a_note_where_a_prompt_is_missing(data):
    made = clip_set("made", [("x0", data.clips[0].prompt), ("x1", "")])
    names, notes, measuring = left_out(made, None)
    assert "alignment-evaluator" not in names and "motion" in names
    assert notes == [note for note in notes if "made: 1 clips have no prompt, such as x1" in note] and notes
    with pytest.raises(DataError, match="alignment-evaluator: made: 1 clips have no prompt"):
        chosen(measuring, TOOLS, ["alignment-evaluator"])
    names, notes, measuring = left_out(clip_set("made", [("x0", ""), ("x1", "")]), None)
    assert "alignment-evaluator" not in names and not notes  # as with all that was not asked for and is not there
    with pytest.raises(ConfigError, match="no clip has a prompt"):
        chosen(measuring, TOOLS, ["alignment-evaluator"])


@pytest.mark.parametrize(
    ("made", "real", "partner"),
    [
        (("a", "fox"), [("b", "fox"), ("a", "cat")], "b"),  # the prompt, whatever names say
        (("a", ""), [("b", "fox"), ("a", "cat")], "a"),
        (("a", "fox"), [("b", "cat"), ("a", "")], "a"),
        (("a", "fox"), [("b", "fox"), ("a", "fox")], "a"),
        (("a", "fox"), [("b", "dog"), ("a", "cat")], "no real clip has its prompt or its name, and the one of its"),
        (("a", "fox"), [("b", "fox"), ("c", "fox"), ("a", "cat")], "2 real clips have its prompt, and the one of its"),
        (("a", "fox"), [("b", "fox"), ("c", "fox")], "2 real clips have its prompt, so"),
    ],
)
def test_clips_are_paired_by_name_only_where_prompts_do_not_tell(made, real, partner):
    sets = clip_set("made", [made]), clip_set("real", real)
    if len(partner) == 1:
        assert [clip.key for clip in partners_of(*sets)] == [partner]
    else:
        with pytest.raises(DataError, match=f"made, a: {partner}"):
            partners_of(*sets)


def test_pairs_of_two_sizes_are_refused_before_they_are_compared():
    check_pairs(clip_set("made", [("a", "fox")]), clip_set("real", [("b", "fox")]))
    with pytest.raises(
        DataError, match="made, a: 5 frames of 32x32, but b of real, its partner, has 16 frames of 32x32"
    ):
        check_pairs(clip_set("made", [("a", "fox")], frames=5), clip_set("real", [("b", "fox")]))


class Fatal:
    """A question over which the process that is asked is killed, as the kernel does where memory runs out."""

    def answer(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Unanswerable:
    def answer(self):
        raise DataError("cannot be judged")


def test_a_killed_process_ends_the_judging_with_what_to_do():
    with pytest.raises(ResourceError, match="judges clips died, most likely for want of memory; free some"):
        list(_asked({str(number): Fatal() for number in range(4)}, 2))


def test_a_clip_that_cannot_be_judged_ends_it_from_another_process_too():
    with pytest.raises(DataError, match="cannot be judged"):
        list(_asked({str(number): Unanswerable() for number in range(4)}, 2))
