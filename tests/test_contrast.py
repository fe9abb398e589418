"""What captions and clips are told apart from in training the evaluator."""

import numpy as np
import torch

from tests.test_evaluator import noise
from vidiff.data.toyworld.altered import altered_captions
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.train.contrast import also_true, contrastive_losses, spoiled


def test_altered_captions_differ_from_all_that_is_true_of_a_scene():
    for index in range(40):
        scene = draw_scene(0, index)
        found = altered_captions(scene, 0, index, 3)
        assert found == altered_captions(scene, 0, index, 3) and len(found) == 3
        assert not set(found) & {caption.text for caption in draw_captions(scene, 0, index, 50)}


def test_an_altered_caption_states_one_wrong_attribute(monkeypatch):
    from vidiff.data.toyworld import altered

    told = []
    monkeypatch.setattr(
        altered, "caption", lambda scene, rng, real=altered.caption: told.append(real(scene, rng)) or told[-1]
    )
    for index in range(40):
        scene = draw_scene(0, index)
        altered_captions(scene, 0, index, 1)
        truth = {name: value for name, value in scene.to_dict().items() if name != "objects"}
        truth |= {f"{name}.{i}": v for i, thing in enumerate(scene.to_dict()["objects"]) for name, v in thing.items()}
        assert sum(truth[name] != value for name, value in told[-1].stated.items()) == 1


def test_spoiled_clips_are_reordered_or_degraded():
    clip = noise(1)
    kinds = set()
    for seed in range(40):
        made = spoiled(clip, np.random.default_rng(seed))
        assert made.shape == clip.shape and made.abs().max() <= 1
        frames = [next((i for i in range(8) if torch.equal(made[0, :, f], clip[0, :, i])), None) for f in range(8)]
        in_order = {tuple(range(8)): "as they were", tuple(reversed(range(8))): "backwards", (frames[0],) * 8: "frozen"}
        kinds.add("degraded" if None in frames else in_order.get(tuple(frames), "shuffled"))
    assert kinds == {"degraded", "backwards", "shuffled", "frozen"}


def test_equal_captions_and_equal_clips_are_no_negatives():
    ignored = also_true(["a", "b", "c", "a"], ["x", "y", "x", "z", "y", "w"])
    expected = torch.zeros(4, 6, dtype=torch.bool)
    for row, column in ((0, 2), (2, 0), (0, 3), (3, 0), (1, 4)):
        expected[row, column] = True
    assert torch.equal(ignored, expected)
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    contrastive_losses(logits, ignored)["total"].backward()
    assert (logits.grad[:4][ignored] == 0).all() and (logits.grad[:4][~ignored] != 0).all()
    assert (logits.grad[4:, :4] != 0).all() and (logits.grad[4:, 4:] == 0).all()


def test_the_loss_is_that_of_the_paper_where_nothing_is_ignored():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    found = contrastive_losses(logits, torch.zeros(4, 4, dtype=torch.bool))
    right = torch.arange(4)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
    torch.testing.assert_close(found["total"], expected)
    assert contrastive_losses(10 * torch.eye(4), torch.zeros(4, 4).bool())["clip_accuracy"] == 1
