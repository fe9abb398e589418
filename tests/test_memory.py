from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from scripts.memory_plans import lines
from vidiff.errors import ConfigError
from vidiff.interop.wan_published import LARGE, SMALL
from vidiff.interop.wan_sizes import SHAPES, SIZES
from vidiff.memory import GIB, WEIGHTS, MemoryPlan, Phase, plan
from vidiff.memory_table import table
from vidiff.models.autoencoder import VideoVAEConfig
from vidiff.models.dit import DiTConfig
from vidiff.models.shapes import ModelShape, autoencoder_weights, transformer_weights
from vidiff.types import Size

WAN_1B, WAN_14B = SHAPES["Wan 2.1 T2V 1.3B"], SHAPES["Wan 2.1 T2V 14B"]
EXPERTS, IMAGES, WAN_5B = SHAPES["Wan 2.2 T2V A14B"], SHAPES["Wan 2.1 I2V 14B"], SHAPES["Wan 2.2 TI2V 5B"]


def phase(found: MemoryPlan, name: str) -> Phase:
    return next(phase for phase in found.phases if phase.name == name)


@pytest.mark.parametrize(
    ("shape", "billions"), [(WAN_1B, 1.419), (WAN_14B, 14.288), (IMAGES, 16.395), (EXPERTS, 14.288), (WAN_5B, 5.000)]
)
def test_weights_are_as_many_as_published(shape: ModelShape, billions: float) -> None:
    counted = transformer_weights(shape.transformers[0], shape.channels, shape.text_dim)
    assert counted.total / 1e9 == pytest.approx(billions, rel=1e-3)
    assert autoencoder_weights(WAN_1B.autoencoder) / 1e6 == pytest.approx(126.9, rel=1e-3)


def test_the_small_published_model_fits_8_gb() -> None:
    found = plan(WAN_1B, SMALL, budget=8, weights=("full",))
    assert found.needed <= 8 * GIB
    assert found.strategy.transformer == "resident" and found.strategy.text == "host"


def test_the_large_published_models_fit_16_gb() -> None:
    for shape in (WAN_14B, IMAGES, EXPERTS):
        found = plan(shape, SMALL, budget=16, weights=("full",))
        assert found.needed <= 16 * GIB and found.strategy.transformer == "streamed"


def test_the_fastest_way_that_fits_is_chosen() -> None:
    kinds = {budget: plan(EXPERTS, SMALL, budget=budget, weights=("full",)).strategy for budget in (16, 48, 80)}
    assert [kinds[budget].transformer for budget in (16, 48, 80)] == ["streamed", "swapped", "resident"]
    parked = plan(WAN_5B, SIZES["Wan 2.2 TI2V 5B"][0], budget=16, weights=("full",))
    assert parked.strategy.parked and parked.strategy.decode == "chunks"
    assert plan(WAN_1B, Size(17, 128, 128, 16.0), budget=80).strategy.decode == "whole"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_more_memory_never_makes_a_plan_leaner_and_low_is_the_leanest(shape: ModelShape) -> None:
    size = SMALL if shape.channels != 48 else SIZES["Wan 2.2 TI2V 5B"][0]
    low = plan(shape, size, budget="low", weights=("full",))
    needed = [found.needed for found in (plan(shape, size, budget=b, weights=("full",)) for b in (16, 24, 48, 80))]
    assert needed == sorted(needed) and low.needed <= needed[0]
    assert low.budget is None and low.strategy.decode == "tiles"
    assert plan(shape, size, budget=low.needed / GIB + 1e-6, weights=("full",)).needed <= low.needed + 1


def test_text_is_encoded_beside_the_transformer_where_there_is_room_for_both() -> None:
    ways = [plan(WAN_1B, SMALL, budget=budget, weights=("full",)) for budget in (80, 12, 8)]
    assert [found.strategy.text for found in ways] == ["beside", "device", "host"]
    both, alone = (phase(found, "encode text").bytes for found in ways[:2])
    assert both - alone == dict(phase(ways[0], "denoise").parts)["transformer"]


def test_nothing_that_fits_is_one_line_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"to denoise needs 23\.\d GiB .* but 16\.0 GiB are given") as error:
        plan(WAN_14B, LARGE, budget=16, weights=("full",))
    assert "\n" not in str(error.value)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="give a number of GiB"):
            plan(WAN_1B, SMALL)
    with pytest.raises(ConfigError, match="frames must be"):
        plan(WAN_1B, replace(SMALL, frames=80), budget=80)


def test_bytes_halve_the_blocks_and_are_slower_than_hidden_copies() -> None:
    plans = [plan(WAN_14B, SMALL, budget="low", weights=(one,)) for one in WEIGHTS]
    blocks = [next(row for row in found.rows if row.what == "transformer, blocks") for found in plans]
    assert [row.dtype for row in blocks] == ["bfloat16", "int8", "fp8"]
    for row in blocks[1:]:
        assert row.bytes == pytest.approx(blocks[0].bytes / 2, rel=0.01)
    assert plan(WAN_14B, SMALL, budget=24, weights=WEIGHTS).strategy.weights == "full"
    # A single frame computes for less time than its weights need to come to the device.
    assert plan(WAN_14B, Size(1, 128, 128, 16.0), budget=24, weights=WEIGHTS).strategy.weights == "int8"


def test_the_host_holds_what_waits_there_and_what_bytes_are_made_of() -> None:
    whole, parked, narrow = (
        plan(WAN_14B, SMALL, budget=48, weights=("full",)),
        plan(WAN_5B, SIZES["Wan 2.2 TI2V 5B"][0], budget=16, weights=("full",)),
        plan(WAN_14B, SMALL, budget=48, weights=("int8",)),
    )
    vae = autoencoder_weights(WAN_14B.autoencoder) * 4
    assert whole.host == vae
    assert parked.strategy.parked and parked.host > 2 * 5.0e9
    assert (
        narrow.strategy.transformer == "resident"
        and narrow.host - vae == dict(phase(whole, "denoise").parts)["transformer"]
    )


def test_weights_that_are_named_are_kept_to_where_others_would_fit() -> None:
    found = plan(WAN_1B, SMALL, budget=80, weights=("fp8",))
    assert found.strategy.weights == "fp8" and found.strategy.transformer == "resident"
    streamed = plan(WAN_14B, SMALL, budget=13, weights=("fp8",)).strategy
    assert streamed.weights == "fp8" and streamed.transformer == "streamed"


def test_only_int8_is_chosen_unasked_and_only_with_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Size(1, 128, 128, 16.0)
    for here, expected in ((True, "int8"), (False, "full")):
        monkeypatch.setattr("vidiff.models.quantize.available", lambda here=here: here)
        assert plan(WAN_14B, short, budget=24).strategy.weights == expected


def test_one_sample_a_call_takes_half_the_activations() -> None:
    both, one = (dict(phase(plan(WAN_1B, SMALL, budget=80, samples=n), "denoise").parts) for n in (2, 1))
    assert both["activations"] == pytest.approx(2 * one["activations"], rel=0.01)
    assert both["transformer"] == one["transformer"]


def test_a_picture_is_planned_with_its_encoder_and_its_own_phase() -> None:
    streamed, whole = (
        plan(IMAGES, SMALL, budget=16, weights=("full",)),
        plan(IMAGES, SMALL, budget=80, weights=("full",)),
    )
    row = next(row for row in streamed.rows if row.what == "image encoder")
    assert row.where == "host" and row.bytes == 2 * 630_766_080
    assert [one.name for one in streamed.phases] == ["encode text", "encode pictures", "denoise", "decode"]
    without = replace(IMAGES, transformers=(replace(IMAGES.transformers[0], concat_channels=0, image_dim=None),))
    plain = phase(plan(without, SMALL, budget=80, weights=("full",)), "denoise")
    more = {name: size - dict(plain.parts).get(name, 0) for name, size in phase(whole, "denoise").parts}
    f, h, w = 21, 60, 104
    assert more["pictures"] == 4 * (1 + 2) * (20 * f * h * w + 257 * 1280)
    assert more["activations"] > 4 * 2 * 36 * f * h * w and more["latents and text"] == 0
    with pytest.raises(ConfigError, match="encode pictures needs"):
        plan(replace(IMAGES, transformers=(DiTConfig(concat_channels=20),)), LARGE, budget=12, weights=("full",))


def test_a_clip_that_is_inverted_is_planned_with_its_own_phase_as_long_as_it_is() -> None:
    without, given = (plan(WAN_1B, SMALL, budget=16, weights=("full",), inverts=one) for one in (False, True))
    (coding,) = (one for one in given.phases if one not in without.phases)
    assert [one.name for one in given.phases] == ["encode text", "encode pictures", "denoise"]  # none is decoded
    assert coding.name == "encode pictures" and dict(coding.parts)["autoencoder"] == 4 * autoencoder_weights(
        WAN_1B.autoencoder
    )
    pictures = phase(plan(IMAGES, SMALL, budget=80, weights=("full",)), "encode pictures")
    assert dict(coding.parts)["activations"] == dict(pictures.parts)["activations"]


def test_a_picture_that_is_not_needed_is_planned_where_it_is_given() -> None:
    size = SIZES["Wan 2.2 TI2V 5B"][0]
    without, given = (plan(WAN_5B, size, budget=24, weights=("full",), picture=one) for one in (False, True))
    assert [one.name for one in given.phases if one not in without.phases] == ["encode pictures", "denoise"]
    more = phase(given, "denoise").bytes - phase(without, "denoise").bytes
    assert more == pytest.approx(4 * 2 * 31 * 22 * 40 * 6 * 3072, rel=0.03)  # modulations of each token, float32


def test_the_transformer_leaves_where_it_would_be_in_the_way_of_a_picture() -> None:
    small = replace(
        IMAGES, transformers=(DiTConfig(dim=1536, depth=30, num_heads=12, ffn_dim=8960, concat_channels=20),)
    )
    for budget, parked in ((17, True), (24, False)):
        assert plan(small, LARGE, budget=budget, weights=("full",)).strategy.parked == parked


def test_a_cpu_holds_everything_in_one_memory() -> None:
    small = ModelShape((DiTConfig(),), 16, 384, 22_000_000, VideoVAEConfig(dim=32), text_length=64)
    found = plan(small, Size(17, 64, 64, 8.0), device="cpu", dtype=torch.float32)
    assert found.budget is not None and found.strategy.transformer == "resident" and found.host == 0
    weights = transformer_weights(small.transformers[0], 16, 384).total
    assert all(phase.bytes > 4 * (weights + autoencoder_weights(small.autoencoder)) for phase in found.phases)
    with pytest.raises(ConfigError, match="GiB of memory at the least"):
        plan(small, Size(17, 64, 64, 8.0), device="cpu", budget=0.6)


def test_weights_of_a_byte_are_made_of_full_ones_in_the_same_memory_on_a_cpu() -> None:
    found = plan(WAN_1B, SMALL, budget=80, device="cpu", weights=("int8",))
    full = transformer_weights(WAN_1B.transformers[0], WAN_1B.channels, WAN_1B.text_dim).total * 2
    read = dict(phase(found, "read weights").parts)
    assert read["transformer"] > full and read["autoencoder"] == 4 * autoencoder_weights(WAN_1B.autoencoder)
    assert dict(phase(found, "denoise").parts)["transformer"] < 0.6 * read["transformer"]
    narrow, whole = (plan(WAN_14B, SMALL, budget=60, device="cpu", weights=(one,)) for one in ("int8", "full"))
    assert narrow.needed >= phase(narrow, "read weights").needed > 27 * 2**30
    assert [one.name for one in whole.phases] == ["encode text", "denoise", "decode"]
    with pytest.raises(ConfigError, match="read weights needs"):
        plan(WAN_14B, Size(1, 128, 128, 16.0), budget=25, device="cpu", weights=("int8",))


def test_all_of_a_transformer_is_on_the_host_before_its_layers_are_streamed() -> None:
    found = plan(WAN_14B, SMALL, budget=16, weights=("full",))
    assert found.strategy.transformer == "streamed"
    transformer = sum(row.bytes for row in found.rows if row.what.startswith("transformer"))
    assert found.host == transformer + 4 * autoencoder_weights(WAN_14B.autoencoder)


def test_the_table_says_what_lies_where() -> None:
    console = Console(width=100, record=True, file=StringIO())
    console.print(table(plan(EXPERTS, SMALL, budget=16, weights=("full",))))
    shown = console.export_text()
    assert "transformer 2, blocks" in shown and "streamed" in shown and "of 16.0 GiB on the device" in shown


def test_the_page_shows_the_plans_that_are_made() -> None:
    page = (Path(__file__).parents[1] / "docs" / "memory.md").read_text()
    assert "\n".join(lines()) in page
