import logging
import sys
import warnings
import weakref
from importlib import metadata
from pathlib import Path

import pytest
import torch

from vidiff.errors import CheckpointError, ConfigError
from vidiff.text import sources
from vidiff.text.cleaning import cleaned
from vidiff.text.encoders import (
    CLIPTextConfig,
    MiniLMConfig,
    T5Config,
    TruncationWarning,
    build_text_encoder,
    quiet,
)


def installed(name):
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


needs_minilm = pytest.mark.skipif(not installed(sources.MINILM_PACKAGE), reason="the offline extra is not installed")
WORDS = ["a", "red", "ball", "rolls", "left", "right", "over", "green", "grass"]


@pytest.fixture(scope="module")
def minilm():
    return build_text_encoder(MiniLMConfig())


@needs_minilm
def test_minilm_gives_the_states_of_the_reference(minilm):
    from transformers import AutoModel, AutoTokenizer

    folder = str(minilm.folder)
    prompts = ["a red ball rolls left", "an orc in chain mail, casting a spell on a grass background"]
    batch = AutoTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
    found = minilm.encode(prompts)
    mask = batch["attention_mask"].bool()
    assert torch.equal(found.mask, mask) and minilm.dim == found.tokens.shape[-1] == 384
    assert (found.tokens[mask] - states[mask]).abs().max() < 1e-5
    assert (found.tokens[~mask] == 0).all()


@needs_minilm
def test_states_do_not_depend_on_the_neighbors(minilm):
    alone = minilm.encode(["a red ball"])
    together = minilm.encode(["a red ball", "something much longer than that, with many more words in it"])
    assert (alone.tokens[0] - together.tokens[0, : alone.tokens.shape[1]]).abs().max() < 1e-5


@needs_minilm
def test_like_prompts_are_closer_than_unlike_ones(minilm):
    found = minilm.encode(["a man runs", "a person is running", "quarterly tax report"])
    pooled = torch.stack([t[m].mean(0) for t, m in zip(found.tokens, found.mask, strict=True)])
    near, far = (torch.cosine_similarity(pooled[0], pooled[i], dim=0) for i in (1, 2))
    assert near > far + 0.2


@needs_minilm
def test_the_words_that_were_cut_are_shown():
    encoder = build_text_encoder(MiniLMConfig(max_tokens=6))
    with pytest.warns(TruncationWarning, match=r"6 tokens; these words were cut: over green grass$"):
        found = encoder.encode(["red ball rolls left over green grass"])
    assert found.tokens.shape[1] == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["red ball", ""])


@needs_minilm
def test_a_word_of_which_a_part_is_read_is_shown_whole():
    encoder = build_text_encoder(MiniLMConfig(max_tokens=4))
    with pytest.warns(TruncationWarning, match=r"were cut: tokenization of grass$"):
        encoder.encode(["a tokenization of grass"])


@needs_minilm
def test_minilm_reads_a_folder_of_ones_own(minilm):
    own = build_text_encoder(MiniLMConfig(source=str(minilm.folder)))
    assert torch.equal(own.encode(["a red ball"]).tokens, minilm.encode(["a red ball"]).tokens)
    with pytest.raises(ConfigError, match="not a folder"):
        build_text_encoder(MiniLMConfig(source="owner/name"))


@needs_minilm
def test_changed_weights_are_refused(tmp_path):
    folder = tmp_path / "minilm"
    folder.mkdir()
    data = bytearray((sources.bundled_minilm() / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="not the published weights"):
        sources.checked_minilm(folder)


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sources, "MINILM_PACKAGE", "no-such-package")
    with pytest.raises(CheckpointError, match=r"vidiff\[offline\]"):
        build_text_encoder(MiniLMConfig())


def save_tokenizer(folder: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def tiny(kind, folder: Path):
    """Save a random text encoder and return it with our config for it."""
    from transformers import CLIPTextConfig as HFClip
    from transformers import CLIPTextModel, T5EncoderModel, UMT5Config, UMT5EncoderModel
    from transformers import T5Config as HFT5

    size = save_tokenizer(folder)
    torch.manual_seed(0)
    if kind == "clip":
        reference = CLIPTextModel(
            HFClip(
                vocab_size=size,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=12,
                eos_token_id=1,
                bos_token_id=2,
            )
        )
        ours = CLIPTextConfig(source=str(folder), max_tokens=12)
    else:
        shape = {"vocab_size": size, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        reference = T5EncoderModel(HFT5(**shape)) if kind == "t5" else UMT5EncoderModel(UMT5Config(**shape))
        ours = T5Config(source=str(folder), max_tokens=12)
    reference.eval().save_pretrained(folder)
    return reference, ours


@pytest.mark.parametrize("kind", ["clip", "t5", "umt5"])
def test_encoders_from_a_folder_equal_the_reference(tmp_path, kind):
    reference, ours = tiny(kind, tmp_path)
    encoder = build_text_encoder(ours)
    found = encoder.encode(["a red ball rolls left", "green grass"])
    ids = torch.tensor([[2, 4, 5, 6, 7, 8, 1], [2, 11, 12, 1, 0, 0, 0]])
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    with torch.no_grad():
        states = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(found.mask, mask.bool()) and encoder.dim == 16
    assert (found.tokens - states * mask[..., None]).abs().max() < 1e-5


def test_weights_are_read_straight_to_a_device_that_is_not_the_host(tmp_path, monkeypatch):
    from transformers import UMT5EncoderModel

    _, ours = tiny("umt5", tmp_path)
    read, maps = UMT5EncoderModel.from_pretrained, []
    monkeypatch.setattr(
        *(UMT5EncoderModel, "from_pretrained"),
        lambda *given, **options: maps.append(options.get("device_map")) or read(*given, **options),
    )
    for device in ("cpu", "meta"):
        parameters = build_text_encoder(ours, device).model.parameters()
        assert {parameter.device.type for parameter in parameters} == {device}
    assert maps == [None, torch.device("meta")]


def test_padding_to_the_limit_is_zeros(tmp_path):
    _, ours = tiny("umt5", tmp_path)
    found = build_text_encoder(T5Config(source=ours.source, max_tokens=12, pad="max")).encode(["a red ball"])
    assert found.tokens.shape == (1, 12, 16) and found.mask.sum() == 5 and (found.tokens[0, 5:] == 0).all()


def test_pickled_weights_are_never_read(tmp_path):
    _, ours = tiny("t5", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are never read"):
        build_text_encoder(ours)


def test_incomplete_weights_are_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    _, ours = tiny("t5", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if "layer_norm" in name)
    save_file(
        {k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="missing"):
        build_text_encoder(ours)


@pytest.mark.parametrize("size", [7, 300])
def test_damaged_weights_are_refused_by_name(tmp_path, size):
    _, ours = tiny("t5", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}/model.safetensors: not a whole"):
        build_text_encoder(ours)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    _, ours = tiny("clip", tmp_path)
    with pytest.raises(CheckpointError, match="does not fit text kind t5"):
        build_text_encoder(T5Config(source=ours.source))


def test_more_tokens_than_positions_are_refused(tmp_path):
    _, ours = tiny("clip", tmp_path)
    with pytest.raises(ConfigError, match="at most 12"):
        build_text_encoder(CLIPTextConfig(source=ours.source, max_tokens=13))


def test_weights_and_tokenizer_may_lie_in_folders_of_their_own(tmp_path):
    weights, words = tmp_path / "text_encoder", tmp_path / "tokenizer"
    weights.mkdir()
    words.mkdir()
    tiny("umt5", weights)
    expected = build_text_encoder(T5Config(source=str(weights))).encode(["a red ball"]).tokens
    (weights / "tokenizer.json").rename(words / "tokenizer.json")
    config = T5Config(source=str(tmp_path), subfolder="text_encoder", tokenizer="../tokenizer")
    assert torch.equal(build_text_encoder(config).encode(["a red ball"]).tokens, expected)


def test_only_the_named_folders_of_a_hub_repository_are_fetched(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda source, **arguments: asked.update(arguments) or str(tmp_path)
    )
    for subfolder, tokenizer, expected in (
        ("text_encoder", "../tokenizer", {"text_encoder", "tokenizer"}),
        ("", "tokenizer", {"", "tokenizer"}),
        ("", ".", {""}),
    ):
        config = T5Config(source="owner/name", revision="0" * 40, subfolder=subfolder, tokenizer=tokenizer)
        with pytest.raises(CheckpointError, match=r"config\.json"):  # the folder that stands for the hub's is empty
            build_text_encoder(config)
        assert {pattern.rpartition("/")[0] for pattern in asked["allow_patterns"]} == expected
        assert asked["local_files_only"]


def test_a_hub_id_needs_a_pinned_revision():
    with pytest.raises(ConfigError, match="40-digit commit"):
        build_text_encoder(T5Config(source="google/umt5-xxl", revision="main"))
    with pytest.raises(ConfigError, match="neither a folder nor a hub id"):
        build_text_encoder(T5Config(source="./nowhere"))
    with pytest.raises(CheckpointError, match="not on this machine"):
        build_text_encoder(T5Config(source="nobody/nothing", revision="0" * 40))


def test_the_fingerprint_follows_weights_and_settings(tmp_path):
    _, ours = tiny("t5", tmp_path)
    first = build_text_encoder(ours).fingerprint
    assert first == build_text_encoder(ours).fingerprint
    assert first != build_text_encoder(T5Config(source=ours.source, max_tokens=9)).fingerprint
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"red"', '"blue"'))
    assert first != build_text_encoder(ours).fingerprint


def test_prompts_are_cleaned_as_published():
    assert cleaned("  a &amp;amp; b\n\tc &lt;d&gt; ") == "a & b c <d>"


def test_a_passing_encoder_gives_the_same_states_and_is_gone_afterwards(tmp_path):
    from vidiff.text.passing import PassingTextEncoder

    _, config = tiny("umt5", tmp_path)
    ours, built = build_text_encoder(config), []

    def build():
        encoder = build_text_encoder(config)
        built.append(weakref.ref(encoder.model))
        return encoder

    passing = PassingTextEncoder(build, ours.dim)
    prompts = ["a red ball", "a", "a red ball"]
    expected, found = ours.encode(prompts), passing.encode(prompts)
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-5, rtol=1e-5)
    passing.encode(["ball"])
    assert len(built) == 1  # not built again before it is let go
    passing.release()
    assert built[0]() is None
    passing.encode(["a"])
    assert len(built) == 1  # a prompt is encoded once
    passing.encode(["blue"])
    assert len(built) == 2


def test_what_transformers_imports_says_nothing_either(capsys):
    """As torchao does of kernels that it was not built with."""
    other = logging.getLogger("torchao")
    handler = logging.StreamHandler(sys.stderr)
    other.addHandler(handler)
    try:
        with quiet():
            other.warning("Failed to load a kernel")
        assert capsys.readouterr().err == ""
        other.warning("heard again")
        assert "heard again" in capsys.readouterr().err
    finally:
        other.removeHandler(handler)
