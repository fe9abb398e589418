"""How near CLIP finds frames to prompts."""

import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.test_extractors import SIDE, noise, saved_clip, saved_dinov2
from tests.test_text_encoders import WORDS
from vidiff.errors import ConfigError, DataError
from vidiff.metrics.clip_alignment import PromptEncoder, derangement, text_alignment
from vidiff.metrics.extractors import build_extractor
from vidiff.text.encoders import TruncationWarning

PROMPTS = ["a red ball", "green grass", "a ball rolls left over grass", "right"]


class Adapter(nn.Module):
    """torchmetrics 1.9 expects features as tensors, which transformers 5 wraps."""

    def __init__(self, clip):
        super().__init__()
        self.clip, self.config = clip, clip.config

    def get_image_features(self, *arguments):
        out = self.clip.get_image_features(*arguments)
        return getattr(out, "pooler_output", out)

    def get_text_features(self, *arguments):
        out = self.clip.get_text_features(*arguments)
        return getattr(out, "pooler_output", out)


def processor(folder):
    """transformers' own preprocessing of pictures and prompts."""
    from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>")

    def process(images=None, text=None, **options):
        if images is None:
            return words(text, return_tensors="pt", padding=True)
        return pictures(images=[image.permute(1, 2, 0).numpy() for image in images], return_tensors="pt")

    return process


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny CLIP: as transformers has it, as an extractor, and its folder."""
    folder = tmp_path_factory.mktemp("clip")
    clip, ours = saved_clip(folder)
    extractor = build_extractor(ours)
    for network in (clip, extractor.network):
        network.visual_projection.weight.data.neg_()  # these random weights give cosines below 0 otherwise
    return clip, extractor, folder


def test_it_equals_the_clip_score_of_torchmetrics(made):
    from torchmetrics.functional.multimodal import clip_score

    clip, extractor, folder = made
    clips = [noise(3, SIDE, SIDE, seed=seed) for seed in range(4)]
    frames = extractor(clips).split(3)
    found = text_alignment(frames, PROMPTS, PromptEncoder(extractor), percent=True)
    assert found.name == "100 * cosine"
    for one, prompt, score in zip(clips, PROMPTS, found.own, strict=True):
        pictures = list(one.permute(0, 3, 1, 2))
        expected = clip_score(pictures, [prompt] * 3, lambda: (Adapter(clip), processor(folder)))
        torch.testing.assert_close(score.float(), expected.detach(), atol=1e-3, rtol=1e-5)
    assert found.own.min() > 1  # below 0, torchmetrics says 0


def test_prompts_lie_where_the_model_puts_them(made):
    clip, extractor, folder = made
    tokens = processor(folder)(text=PROMPTS)
    with torch.no_grad():
        features = clip.get_text_features(tokens["input_ids"], tokens["attention_mask"])
    found = PromptEncoder(extractor)(PROMPTS)
    assert found.shape == (4, extractor.dim) and found.dtype == torch.float32
    torch.testing.assert_close(found, getattr(features, "pooler_output", features), atol=1e-5, rtol=1e-5)


def test_a_prompt_does_not_depend_on_the_others(made):
    encode = PromptEncoder(made[1])
    together = encode([*PROMPTS, PROMPTS[0]])
    torch.testing.assert_close(together[:4], torch.cat([encode([one]) for one in PROMPTS]), atol=1e-5, rtol=1e-5)
    assert torch.equal(together[4], together[0])


def test_the_words_that_were_cut_are_shown(made):
    encode = PromptEncoder(made[1])
    longest = " ".join((WORDS * 2)[:10])  # 12 with the marks of start and end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode([longest])
    with pytest.warns(TruncationWarning, match=r"longer than 12 tokens; these words were cut: grass left$"):
        cut = encode([f"{longest} grass left"])
    torch.testing.assert_close(cut, encode([longest]))


def planted(prompts):
    """Directions of prompts: each has one of its own."""
    return torch.stack([drawn(sum(map(ord, prompt))) for prompt in prompts])


def drawn(seed, *shape):
    return torch.randn(*shape, 64, generator=torch.Generator().manual_seed(seed))


def test_equal_directions_have_a_cosine_of_one():
    found = text_alignment([5 * planted([one]).expand(3, -1) for one in PROMPTS], PROMPTS, planted)
    assert found.name == "cosine" and found.mean == pytest.approx(1)
    assert found.own.shape == found.shuffled.shape == (4,) and found.shuffled.mean() < 0.5


def test_the_mean_goes_over_frames_then_clips():
    # Cosines 1, 0 and 0 in one clip and 1 in the other: 2/3 over clips, 1/2 over frames.
    words = torch.eye(2)
    frames = [torch.tensor([[3.0, 0], [0, 1], [0, -2]]), torch.tensor([[0, 0.5]])]
    found = text_alignment(frames, ["a", "b"], lambda prompts: words, percent=True)
    torch.testing.assert_close(found.own, torch.tensor([100 / 3, 100]).double())
    assert found.mean == pytest.approx(200 / 3)
    # Shuffled, the first clip's other frames count, 1 and -1, and the second clip's are at right angles.
    torch.testing.assert_close(found.shuffled, torch.zeros(2).double(), atol=1e-12, rtol=0)


def test_shuffling_the_pairs_lowers_a_planted_alignment():
    prompts = [f"prompt {number}" for number in range(40)]
    frames = [planted([one]) + drawn(number, 4) for number, one in enumerate(prompts)]
    found = text_alignment(frames, prompts, planted)
    assert found.mean > 0.5 and abs(found.shuffled.mean()) < 0.1
    wrong = text_alignment(frames, prompts[1:] + prompts[:1], planted)
    assert abs(wrong.mean) < 0.1


def test_the_seed_decides_the_shuffling():
    prompts = [f"prompt {number}" for number in range(20)]
    frames = [drawn(number, 2) for number in range(20)]
    one, same, other = (text_alignment(iter(frames), prompts, planted, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.shuffled, same.shuffled) and not torch.equal(one.shuffled, other.shuffled)
    assert torch.equal(one.own, other.own)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.integers(0, 1000))
def test_every_clip_gets_another_prompt_where_that_is_possible(prompts, seed):
    others = derangement(prompts, seed)
    # Those with the most common prompt need as many clips with other ones.
    if 2 * max(Counter(prompts).values()) > len(prompts):
        assert others is None
    else:
        assert sorted(others) == list(range(len(prompts)))
        assert all(prompts[other] != prompt for other, prompt in zip(others, prompts, strict=True))


def test_one_prompt_for_all_has_no_shuffled_baseline():
    found = text_alignment([drawn(1, 2), drawn(2, 2)], ["a", "a"], planted)
    assert found.shuffled is None
    expected = F.cosine_similarity(drawn(1, 2), planted(["a"])).mean()
    torch.testing.assert_close(found.own[0].float(), expected)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_clips_and_prompts_must_pair(count):
    with pytest.raises(DataError, match="prompt"):
        text_alignment([drawn(0, 2)] * count, ["a", "b"], planted)
    with pytest.raises(DataError, match="at least one"):
        text_alignment([], [], planted)


def test_only_a_clip_has_a_text_side(tmp_path):
    extractor = build_extractor(saved_dinov2(tmp_path)[1])
    with pytest.raises(ConfigError, match="kind clip, got dinov2"):
        PromptEncoder(extractor)
