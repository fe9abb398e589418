import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidiff import config, yaml12
from vidiff.diffusion.guidance import Guidance
from vidiff.diffusion.scale_schedule import Piece, ScaleSchedule, parsed, step_of
from vidiff.errors import ConfigError

GRID = torch.linspace(1, 0, 11, dtype=torch.float64)


def scales(text, times=GRID):
    return parsed(text).at(times[:-1], times).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6", [6] * 10),
        ("6@0:0.7,1", [1, 1, 1, 6, 6, 6, 6, 6, 6, 6]),
        ("6@0:0.7", [1, 1, 1, 6, 6, 6, 6, 6, 6, 6]),  # what no piece covers is 1
        ("2@0.5:1,6@0:0.7,3", [2, 2, 2, 2, 2, 2, 6, 6, 6, 6]),  # the first piece that holds is taken
        ("8..2@0:1", [2, 2.6, 3.2, 3.8, 4.4, 5, 5.6, 6.2, 6.8, 7.4]),  # 8 belongs to 0, the left time
        ("8..2", [2, 2.6, 3.2, 3.8, 4.4, 5, 5.6, 6.2, 6.8, 7.4]),
        ("15/1@0:0.5", [1, 1, 1, 1, 1, 15, 1, 15, 1, 15]),  # begins with its first number at its first step
        ("15@0.8:1,15/1@0:0.8", [15, 15, 15, 1, 15, 1, 15, 1, 15, 1]),
        ("9/3/1", [9, 3, 1, 9, 3, 1, 9, 3, 1, 9]),
    ],
)
def test_a_schedule_says_the_scale_of_every_step(text, expected):
    assert scales(text) == pytest.approx(expected)


def test_a_time_between_two_of_the_grid_belongs_to_the_step_that_passes_it():
    t = torch.tensor([1.0, 0.95, 0.9, 0.05, 0.0], dtype=torch.float64)
    assert step_of(t, GRID).tolist() == [0, 0, 1, 9, 9]
    assert parsed("15/1").at(t, GRID).tolist() == [15, 15, 1, 1, 1]


numbers = st.floats(-30, 30, allow_subnormal=False) | st.integers(0, 20).map(float)


@st.composite
def pieces(draw):
    form = draw(st.sampled_from(["constant", "ramp", "alternating"]))
    count = {"constant": 1, "ramp": 2}.get(form) or draw(st.integers(2, 4))
    start, stop = sorted(draw(st.tuples(st.floats(0, 0.5), st.floats(0.6, 1))))
    return Piece(form, tuple(draw(numbers) for _ in range(count)), start, stop, rest=False)


@given(st.lists(pieces(), min_size=1, max_size=4))
def test_what_is_written_is_read_back(found):
    schedule = ScaleSchedule(tuple(found))
    assert parsed(str(schedule)) == schedule


def test_a_constant_is_written_as_a_number():
    assert parsed("6").plain == 6.0 and parsed("6@0:1").plain == "6@0:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("six", "'six' is no piece"),
        ("", "'' is no piece"),
        ("6@0.7", "'6@0.7' is no piece"),
        ("1 5", "'1 5' is no piece"),
        ("6@0:0.7,,1", "'' is no piece"),
        ("8..2..1", "'8..2..1' is no piece"),
        ("6@0.7:0.2", "'6@0.7:0.2' needs times with 0 <= from <= to <= 1"),
        ("6@0:2", "needs times"),
        ("8..2@0.5:0.5", "no time to go"),
        ("1,6@0:1", "'1' covers the rest, so it comes last"),
        ("1e999", "no finite number"),
    ],
)
def test_a_mistake_names_its_piece_and_shows_what_a_piece_is(text, words):
    with pytest.raises(ConfigError) as error:
        parsed(text)
    assert words in str(error.value) and "for example 6@0:0.7,1" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_alternating_by_step_needs_the_steps():
    with pytest.raises(ConfigError, match="needs the times"):
        parsed("15/1").at(GRID[:2])
    assert parsed("15/1@0:0.5,3").at(GRID[:2]).tolist() == [3, 3]  # but only where it holds


@pytest.mark.parametrize("scale", [2.5, 3, "6@0:0.7,1", "15/1@0:0.5"])
def test_yaml_holds_a_number_or_a_schedule(scale):
    given = yaml12.parse(yaml12.dump({"scale": scale}), "test").data
    guidance = config.from_dict(Guidance, given)
    assert guidance.scale == scale and config.to_dict(guidance)["scale"] == scale
    assert config.from_dict(Guidance, config.to_dict(guidance)) == guidance
    assert yaml12.parse(f"scale: {scale}", "test").data == given  # without quotes


def test_a_mistake_in_yaml_names_its_place():
    with pytest.raises(ConfigError, match=r"^m\.yaml: .*'6@0' is no piece"):
        config.from_dict(Guidance, {"scale": "6@0"}, "m.yaml")


def test_a_schedule_that_says_when_replaces_the_interval():
    own = Guidance(scale=2.0, t_min=0.5, t_max=0.9)
    assert own.with_scale("3") == Guidance(scale=3.0, t_min=0.5, t_max=0.9)
    assert own.with_scale("3@0.2:0.4") == Guidance(scale="3@0.2:0.4")
