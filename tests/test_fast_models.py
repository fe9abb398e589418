"""Bundled models of few steps: how they are found, and whose autoencoder they take."""

from dataclasses import replace

import pytest

from vidiff import resources
from vidiff.errors import CheckpointError, ConfigError
from vidiff.model_folder import AUTOENCODER, ModelConfig, autoencoder_folder


def test_the_fast_version_of_a_model_is_the_one_named_after_it(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "bundled_models", lambda: {"a": tmp_path, "a_fast": tmp_path, "b": tmp_path})
    assert resources.fast_model("a") == "a_fast"
    with pytest.raises(ConfigError, match="b has no fast version; models that have: a"):
        resources.fast_model("b")


def test_a_model_may_take_the_autoencoder_of_a_bundled_one(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "bundled_models", lambda: {"sprites": tmp_path / "s"})
    own = ModelConfig()
    assert autoencoder_folder(tmp_path, own) == tmp_path / AUTOENCODER
    assert autoencoder_folder(tmp_path, replace(own, autoencoder="sprites")) == tmp_path / "s" / AUTOENCODER
    with pytest.raises(CheckpointError, match=r"of sprite, no bundled model. Did you mean sprites\?"):
        autoencoder_folder(tmp_path, replace(own, autoencoder="sprite"))
