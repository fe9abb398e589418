import math

import pytest
import torch

from vidiff.errors import ConfigError
from vidiff.sampling.interpolation import Arc, ArcNoise, slerp, text_between
from vidiff.sampling.noise import SeededNoise
from vidiff.types import TextEmbedding, pooled_text


def noise(count=3, seed=0):
    return SeededNoise(range(seed, seed + count)).randn(4, 5, 8, 8)


def text(*lengths, seed=0, dim=8):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return TextEmbedding(torch.randn(len(lengths), max(lengths), dim, generator=generator) * mask[..., None], mask)


def attended(found, query):
    """Return what attention over the real tokens gives a query."""
    scores = (found.tokens @ query).masked_fill(~found.mask, -math.inf)
    return (scores.softmax(1)[..., None] * found.tokens).sum(1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_noise_on_an_arc_is_as_large_as_noise(share):
    a, b = noise(), noise(seed=9)
    found = slerp(a, b, torch.full((3,), share))
    assert found.std((1, 2, 3, 4)).tolist() == pytest.approx([1] * 3, abs=0.05)
    line = a.lerp(b, share)
    assert (found.std((1, 2, 3, 4)) > line.std((1, 2, 3, 4)) + 0.05).all()


def test_the_ends_of_an_arc_are_exact_and_each_sample_has_its_own_share():
    a, b = noise(), noise(seed=9)
    found = slerp(a, b, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(found[0], a[0]) and torch.equal(found[2], b[2])
    assert torch.equal(found[1], slerp(a[1:2], b[1:2], torch.tensor([0.5]))[0])


def test_an_arc_goes_at_an_even_pace():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for share in (0.25, 0.5, 0.75):
        angle = share * math.pi / 2
        assert slerp(a, b, torch.tensor([share]))[0].tolist() == pytest.approx([math.cos(angle), math.sin(angle)])


def test_parallel_samples_and_zeros_are_joined_by_a_line():
    a = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[2.0, 4.0], [0.0, 0.0], [-3.0, 0.0]])
    assert torch.equal(slerp(a, b, torch.full((3,), 0.5)), torch.tensor([[1.5, 3.0], [0.0, 0.0], [-1.0, 0.0]]))


def test_all_draws_go_from_those_of_one_seed_to_those_of_the_other():
    seeds, arcs = [1, 1, 1, 1], [Arc(0.0, 9), Arc(0.3, 9), Arc(1.0, 9), None]
    source, here, there = ArcNoise(seeds, arcs), SeededNoise([1]), SeededNoise([9])
    for _ in range(2):
        found, (one,), (other,) = source.randn(4, 3), here.randn(4, 3), there.randn(4, 3)
        assert torch.equal(found[0], one) and torch.equal(found[2], other) and torch.equal(found[3], one)
        assert torch.equal(found[1], slerp(one[None], other[None], torch.tensor([0.3]))[0])


def test_an_arc_to_another_prompt_leaves_the_noise_alone():
    assert torch.equal(ArcNoise([4], [Arc(0.5, to_prompt="x")]).randn(4, 3), SeededNoise([4]).randn(4, 3))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_outside_the_way_is_refused(share):
    with pytest.raises(ConfigError, match=r"lies in \[0, 1\]"):
        Arc(share)


def test_a_text_at_an_end_is_that_end_itself():
    a, b = text(3), text(7, seed=1)
    for share, end in ((0.0, a), (1.0, b)):
        found = text_between(a, b, [share])
        assert torch.equal(found.tokens, end.tokens) and torch.equal(found.mask, end.mask)


@pytest.mark.parametrize(("long", "short"), [(7, 3), (3, 7), (6, 4), (5, 5), (1, 6), (100, 99)])
def test_just_off_an_end_a_network_reads_what_it_reads_there(long, short):
    a, b, query = text(long), text(short, seed=1), torch.randn(8, generator=torch.Generator().manual_seed(2))
    for share, end in ((1e-7, a), (1 - 1e-7, b)):
        found = text_between(a, b, [share])
        tolerance = 1e-5 if math.lcm(long, short) <= 4096 else 0.05
        assert torch.allclose(attended(found, query), attended(end, query), atol=tolerance)
        assert torch.allclose(pooled_text(found), pooled_text(end), atol=tolerance)
        assert found.tokens.shape[1] <= 4096


def test_texts_of_one_length_meet_token_by_token():
    a, b = text(5), text(5, seed=1)
    found = text_between(a, b, [0.5])
    assert torch.equal(found.tokens[0], slerp(a.tokens[0], b.tokens[0], torch.full((5,), 0.5)))


def test_texts_of_a_batch_do_not_change_one_another():
    a, b = text(3, 5, 2), text(6, 4, 7, seed=1)
    whole = text_between(a, b, [0.0, 0.4, 1.0])
    for index, share in enumerate((0.0, 0.4, 1.0)):
        rows = [TextEmbedding(part.tokens[index : index + 1], part.mask[index : index + 1]) for part in (a, b)]
        alone = text_between(*rows, [share])
        assert torch.equal(whole.tokens[index][whole.mask[index]], alone.tokens[alone.mask])
