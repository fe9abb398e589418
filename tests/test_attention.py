import math

import pytest
import torch

from vidiff.models.attention import Attention, QueryKeyNorm, attend, rotate
from vidiff.models.embeddings import TimeEmbedding, absolute_embedding, axis_dims, rotary_table, token_positions

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_attention_equals_the_formula_written_out():
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    expected = torch.empty(2, 3, 4, 8)
    for b in range(2):
        real = int(mask[b].sum())
        for h in range(3):
            for n in range(4):
                weights = (k[b, h, :real] @ q[b, h, n]).exp()
                expected[b, h, n] = (weights / weights.sum()) @ v[b, h, :real]
    torch.testing.assert_close(attend(q, k, v, mask), expected)


def test_long_sequences_take_the_fused_kernel_and_agree_with_short_ones():
    q, k, v = torch.randn(1, 1, 520, 4), torch.randn(1, 1, 520, 4), torch.randn(1, 1, 520, 4)
    mask = torch.rand(1, 520) < 0.7
    pieces = [attend(piece, k, v, mask) for piece in q.split(130, dim=2)]
    torch.testing.assert_close(attend(q, k, v, mask), torch.cat(pieces, dim=2), rtol=1e-4, atol=1e-5)


def test_queries_and_keys_are_normalized_over_the_whole_width():
    norm = QueryKeyNorm(6, eps=0.0)
    y = norm(7 * torch.randn(2, 3, 6), scale=0.5)
    torch.testing.assert_close(y.square().mean(-1), torch.full((2, 3), 0.25))


def test_attention_does_not_depend_on_the_size_of_its_queries():
    attention = Attention(8, num_heads=2)
    x = torch.randn(1, 4, 8)
    before = attention(x)
    with torch.no_grad():
        attention.query.weight *= 10
        attention.query.bias *= 10
    torch.testing.assert_close(attention(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dim", "shares"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (2, (2, 0, 0)), (16, (8, 4, 4))])
def test_channels_split_over_the_axes_as_in_wan(dim: int, shares: tuple[int, int, int]):
    assert axis_dims(dim) == shares


def test_rotation_turns_each_pair_by_position_times_frequency():
    table = rotary_table(token_positions((3, 2, 2), CPU), head_dim=16)  # 8 channels for frames, 4 a spatial axis
    assert table.shape == (1, 12, 1, 8)
    frame, row, column = 2, 1, 1
    token = table[0, frame * 4 + row * 2 + column, 0]
    frequencies = [1e4 ** (-j / 4) for j in range(4)]
    angles = [frame * w for w in frequencies] + [row, row * 1e-2, column, column * 1e-2]
    torch.testing.assert_close(token.real, torch.tensor([math.cos(a) for a in angles]))
    torch.testing.assert_close(token.imag, torch.tensor([math.sin(a) for a in angles]))


def test_scores_of_rotated_tokens_depend_on_distance_only():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    near = rotary_table(token_positions((8, 1, 1), CPU), 16)
    q, k = rotate(q.expand(1, 8, 1, 16), near), rotate(k.expand(1, 8, 1, 16), near)
    scores = torch.einsum("bnhd,bmhd->nm", q, k)
    for distance in range(-7, 8):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert scores[0].std() > 0.1


def test_positions_of_a_batch_start_where_each_clip_starts():
    both = token_positions((2, 2, 3), CPU, torch.tensor([0, 5]))
    alone = token_positions((7, 2, 3), CPU)
    embedded, whole = absolute_embedding(both, 12), absolute_embedding(alone, 12)
    assert embedded.shape == (2, 12, 12)
    torch.testing.assert_close(embedded[0], whole[0, :12])
    torch.testing.assert_close(embedded[1], whole[0, 30:])


def test_absolute_embeddings_tell_all_places_apart():
    embedded = absolute_embedding(token_positions((3, 4, 5), CPU), 24)[0]
    distance = torch.cdist(embedded, embedded) + 10 * torch.eye(60)
    assert distance.min() > 0.1


def test_close_times_stay_apart_under_autocast():
    embedding = TimeEmbedding(8)
    with torch.autocast("cpu", torch.bfloat16):
        y = embedding(torch.tensor([0.5000, 0.5004]))
    assert y.dtype == torch.float32
    assert (y[0] - y[1]).abs().max() > 1e-5
