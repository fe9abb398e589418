import pytest
import torch

from vidiff.diffusion.guidance import Guidance, SkipLayers, guided
from vidiff.diffusion.travel import Mixed
from vidiff.types import Conditioning, TextEmbedding


def says(value, batch=2):
    return Conditioning(TextEmbedding(torch.full((batch, 1, 1), value), torch.ones(batch, 1, dtype=torch.bool)))


class Echo:
    """Estimates x_0 as x_t plus what the text says, and counts its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, x_t, t, cond):
        assert len(x_t) == len(t) == len(cond.text.tokens)
        self.batches.append(len(x_t))
        return x_t + cond.text.tokens.view(-1, 1, 1, 1, 1)


def test_both_branches_share_one_call():
    echo, x, t = Echo(), torch.zeros(2, 1, 1, 2, 2), torch.full((2,), 0.5)
    found = guided(echo, says(1.0), says(-2.0), Guidance(scale=3.0))(x, t)
    assert echo.batches == [4]
    assert (found == -2 + 3 * (1 - -2)).all()  # away from the negative, through the condition, and beyond


@pytest.mark.parametrize("guidance", [Guidance(scale=1.0), Guidance(scale=4.0, t_max=0.4)])
def test_without_guidance_the_null_branch_is_not_computed(guidance):
    echo = Echo()
    guided(echo, says(1.0), says(-2.0), guidance)(torch.zeros(2, 1, 1, 2, 2), torch.full((2,), 0.5))
    assert echo.batches == [2]


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(scale=1.0),
        Guidance(scale="6@0:0.7,1"),
        Guidance(perpendicular=0.5),
        Guidance(perpendicular=0.0),
        Guidance(scale=1.0, perpendicular=0.5),
        Guidance(perpendicular=0.5, skip=SkipLayers(scale=2.0, layers=(0,))),
        Guidance(scale=1.0, skip=SkipLayers(scale=2.0, layers=(0,))),
    ],
    ids=str,
)
def test_samples_of_a_call_are_known_before(guidance, negative, prompts):
    echo, times = Echo(), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    cond = Mixed(tuple(says(float(i)) for i in range(prompts)), torch.ones(2, prompts, 2, 1, dtype=torch.float64))
    away = says(9.0) if negative else None
    denoise = guided(echo, cond, says(-2.0), guidance, negative=away, times=times)
    denoise(torch.zeros(2, 1, 1, 2, 2), torch.full((2,), 0.5))
    assert echo.batches == [2 * guidance.samples(prompts, negative)]


@pytest.mark.parametrize("shape", [(2, 1, 2, 2, 2), (2, 1, 1, 1, 1)])
def test_rescale_leaves_an_estimate_without_deviation_alone(shape):
    denoise = guided(Echo(), says(1.0), says(0.0), Guidance(scale=3.0, rescale=1.0))
    assert (denoise(torch.zeros(shape), torch.full((2,), 0.5)) == 3).all()


def test_rescale_treats_each_sample_by_itself():
    def denoise(x_t, t, cond):
        return x_t * cond.text.tokens.view(-1, 1, 1, 1, 1)

    x, t = torch.randn(2, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0)), torch.full((2,), 0.5)
    guidance = Guidance(scale=2.0, rescale=0.7)
    together = guided(denoise, says(1.0), says(0.2), guidance)(x * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1), t)
    alone = guided(denoise, says(1.0, 1), says(0.2, 1), guidance)(x[:1], t[:1])
    assert torch.allclose(together[:1], alone)
    # The mix is 1.8 x and the conditional estimate x, so 0.7 of the way back is 1.24 x.
    assert torch.allclose(alone, 1.24 * x[:1], rtol=1e-5)


def test_each_sample_is_guided_by_its_own_time():
    x, t = torch.zeros(2, 1, 1, 2, 2), torch.tensor([0.3, 0.9])
    for times, expected in ((t, [3.0, 1.0]), (t.flip(0), [1.0, 3.0])):
        found = guided(Echo(), says(1.0), says(0.0), Guidance(scale=3.0, t_max=0.6))(x, times)
        assert found.mean((1, 2, 3, 4)).tolist() == expected
