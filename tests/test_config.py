import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidiff import config, resources, yaml12
from vidiff.errors import ConfigError


@dataclass(frozen=True)
class Blur:
    kind: Literal["blur"] = "blur"
    radius: float = 1.0


@dataclass(frozen=True)
class Crop:
    kind: Literal["crop"] = "crop"
    height: int = 8
    width: int = 8

    def __post_init__(self) -> None:
        if self.height < 1:
            raise ValueError(f"height must be positive, got {self.height}")


@dataclass(frozen=True)
class Trainer:
    learning_rate: float = 1e-3
    max_steps: int = 10
    deterministic: bool = False


@dataclass(frozen=True)
class Stage:
    name: str
    trainer: Trainer = field(default_factory=Trainer)
    crop: Crop | None = None


@dataclass(frozen=True)
class Recipe:
    title: str = "a"
    folder: Path = Path("runs/a")
    patch: tuple[int, int, int] = (1, 2, 2)
    filter: Blur | Crop = field(default_factory=lambda: Blur(radius=3.0))
    steps: tuple[Blur | Crop, ...] = ()
    stages: list[Stage] = field(default_factory=list)
    predicts: Literal["eps", "flow"] = "eps"
    limit: float | None = None
    size: tuple[int, int] | None = None
    notes: dict[str, float] = field(default_factory=dict)


FULL = Recipe(
    title="1e-4",
    folder=Path("runs/no"),
    patch=(1, 4, 4),
    filter=Crop(height=3),
    steps=(Crop(), Blur(radius=1e-5)),
    stages=[Stage("base", Trainer(1e-4, 7, True)), Stage("12:30", crop=Crop(width=5))],
    predicts="flow",
    limit=2.0,
    notes={"off": 1.0},
)


def errors_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_config_survives_the_way_to_yaml_and_back(tmp_path):
    assert config.load(Recipe, write(tmp_path, config.dump(FULL))) == FULL
    assert config.from_dict(Recipe, config.to_dict(FULL)) == FULL


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20), st.floats(-1e300, 1e300))
def test_any_text_and_number_survive_the_way_to_yaml_and_back(text, number):
    recipe = Recipe(title=text, limit=number)
    assert config.from_dict(Recipe, yaml12.parse(config.dump(recipe), "dump").data) == recipe


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.5", 1.5), (".5", 0.5), ("-2E3", -2000.0), ("no", "no"), ("off", "off"), ("yes", "yes"),
        ("12:30", "12:30"), ("16:9", "16:9"), ("010", 10), ("0o10", 8), ("0x1F", 31), ("1_000", "1_000"), ("~", None),
        ("", None), ("null", None), ("true", True), ("False", False), ("'1'", "1"), ('"true"', "true"),
        ("2024-01-01", "2024-01-01"), ("+7", 7), (".inf", float("inf")), ("-.INF", float("-inf")), ("0b1", "0b1"),
        ("<<", "<<"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = yaml12.parse(f"key: {text}\n", "a.yaml").data["key"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "given twice"),
        ("a: &x [1]\nb: *x\n", 1, "aliases"),
        ("a: 1\nb: *x\n", 2, "aliases"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "tag"),
        ("a:\n  - !!str 1\n", 2, "tag"),
        ("? [a, b]\n: 1\n", 1, "key"),
        ("a: 1\n b: 2\n", 2, "mapping values"),
        ("a: [1, 2\n", 2, "expected"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: " + "9" * 5000, 1, "digits"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(tmp_path, text, line, what):
    path = write(tmp_path, text)
    message = errors_of(lambda: config.read_yaml(path))
    assert message.startswith(f"{path}:{line}: ") and what in message


def test_deep_nesting_is_refused_and_the_limit_itself_is_read():
    limit = yaml12.MAX_DEPTH
    assert yaml12.parse("[" * limit + "]" * limit, "a.yaml").data is not None
    for depth in (limit + 1, 5000):
        assert "deep" in errors_of(lambda depth=depth: yaml12.parse("[" * depth + "]" * depth, "a.yaml"))


def test_large_binary_and_absent_files_are_refused_by_name(tmp_path):
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_bytes(b"a" * (yaml12.MAX_BYTES + 1))
    binary.write_bytes(b"a: \xff\xfe")
    assert "larger than" in errors_of(lambda: config.read_yaml(large))
    assert "not UTF-8 text (byte 3)" in errors_of(lambda: config.read_yaml(binary))
    assert str(tmp_path / "no.yaml") in errors_of(lambda: config.read_yaml(tmp_path / "no.yaml"))


KEYS = [(cls, f.name) for cls in (Recipe, Stage, Trainer, Crop, Blur) for f in dataclasses.fields(cls)]


@pytest.mark.parametrize(("cls", "key"), KEYS)
def test_every_key_misspelt_by_one_edit_suggests_the_right_one(cls, key):
    edits = {key[:i] + key[i + 1 :] for i in range(len(key))} | {key[:i] + "q" + key[i:] for i in range(len(key) + 1)}
    edits |= {key[:i] + "q" + key[i + 1 :] for i in range(len(key))}
    for edit in edits - {f.name for f in dataclasses.fields(cls)}:
        message = errors_of(lambda edit=edit: config.from_dict(cls, {edit: 1}, "a.yaml"))
        assert f"{edit}: unknown key. Did you mean {key}?" in message


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"title": 1}, "title"),
        ({"title": None}, "title"),
        ({"folder": 3}, "folder"),
        ({"patch": [1, 2]}, "patch"),
        ({"patch": [1, 2, "3"]}, "patch.2"),
        ({"patch": [1, 2, 3.0]}, "patch.2"),
        ({"patch": "1,2,3"}, "patch"),
        ({"size": [1]}, "size"),
        ({"size": [1, "2"]}, "size.1"),
        ({"filter": None}, "filter"),
        ({"filter": {"kind": "crop", "height": True}}, "filter.height"),
        ({"filter": {"kind": "crop", "radius": 1.0}}, "filter.radius"),
        ({"steps": [{"radius": 1.0}]}, "steps.0"),
        ({"steps": {"kind": "blur"}}, "steps"),
        ({"stages": [{"name": "a"}, {"name": "b", "trainer": {"learning_rate": "1e-4"}}]},
         "stages.1.trainer.learning_rate"),
        ({"stages": [{"name": "a", "trainer": {"deterministic": 1}}]}, "stages.0.trainer.deterministic"),
        ({"stages": [{"name": "a", "trainer": {"max_steps": 1.0}}]}, "stages.0.trainer.max_steps"),
        ({"limit": float("nan")}, "limit"),
        ({"limit": float("inf")}, "limit"),
        ({"limit": 10**400}, "limit"),
        ({"limit": True}, "limit"),
        ({"notes": {"a": "b"}}, "notes.a"),
        ({"title": "\ud800"}, "title"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_dotted_place(data, place):
    assert errors_of(lambda: config.from_dict(Recipe, data, "a.yaml")).startswith(f"a.yaml: {place}: ")


def test_a_whole_number_stands_for_a_float_and_becomes_one():
    limit = config.from_dict(Recipe, {"limit": 3}).limit
    assert limit == 3.0 and isinstance(limit, float)


def test_all_errors_come_at_once_with_file_and_line(tmp_path):
    path = write(tmp_path, "titel: x\npatch: [1, 2]\nstages:\n  - trainer: {max_steps: many}\npredicts: flwo\n")
    lines = errors_of(lambda: config.load(Recipe, path)).splitlines()
    assert lines[0] == f"5 problems in {path}"
    assert {line.strip().split(" ")[0] + line.strip().split(" ")[1] for line in lines[1:]} == {
        f"{path}:1:titel:", f"{path}:2:patch:", f"{path}:4:stages.0:", f"{path}:4:stages.0.trainer.max_steps:",
        f"{path}:5:predicts:",
    }  # fmt: skip
    assert lines[-1].endswith("Did you mean flow?")


def test_an_unknown_kind_names_the_nearest_and_all():
    message = errors_of(lambda: config.from_dict(Recipe, {"filter": {"kind": "blurr"}}))
    assert "filter.kind" in message and "blur, crop" in message and "Did you mean blur?" in message


def test_a_missing_kind_is_that_of_the_default_and_what_is_left_out_stays_as_in_it():
    assert config.from_dict(Recipe, {"filter": {}}).filter == Blur(radius=3.0)
    assert config.from_dict(Recipe, {"filter": {"radius": 2}}).filter == Blur(radius=2.0)
    assert config.from_dict(Recipe, {"filter": {"kind": "crop"}}).filter == Crop()


def test_a_refusal_of_the_class_itself_gets_its_place():
    message = errors_of(lambda: config.from_dict(Recipe, {"steps": [{"kind": "crop", "height": 0}]}, "a.yaml"))
    assert message == "a.yaml: steps.0: height must be positive, got 0"


def test_a_union_can_be_the_whole_config():
    assert config.from_dict(Blur | Crop, {"kind": "crop", "width": 2}) == Crop(width=2)
    assert "the key kind is missing" in errors_of(lambda: config.from_dict(Blur | Crop, {}))


def test_an_empty_file_is_all_defaults(tmp_path):
    assert config.load(Recipe, write(tmp_path, "# nothing\n")) == Recipe()


def test_overrides_are_yaml_at_a_dotted_place(tmp_path):
    path = write(tmp_path, "stages:\n  - name: a\n  - {name: b, trainer: {max_steps: 3}}\n")
    sets = ["stages.1.trainer.learning_rate=2e-4", "filter.radius=5", "patch=[1, 1, 1]", "title=no", "limit=null"]
    recipe = config.load(Recipe, path, sets)
    assert recipe.stages[1] == Stage("b", Trainer(2e-4, 3)) and recipe.stages[0] == Stage("a")
    assert (recipe.filter, recipe.patch, recipe.title, recipe.limit) == (Blur(radius=5.0), (1, 1, 1), "no", None)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("title", "not of the form"),
        ("=3", "not of the form"),
        ("a..b=3", "not of the form"),
        ("titel=x", "Did you mean title?"),
        ("stages.0.trainer.learning_rat=1", "Did you mean learning_rate?"),
        ("stages.4.name=x", "no such item"),
        ("stages.first.name=x", "no such item"),
        ("title.length=3", "has no keys"),
        ("patch=[1, 2", "expected"),
        ("stages.0.trainer.max_steps=1e3", "stages.0.trainer.max_steps: expected a valid integer"),
        ("limit=.nan", "limit"),
    ],
)
def test_a_bad_override_is_named_with_a_hint(tmp_path, text, what):
    path = write(tmp_path, "title: x\nstages: [{name: a}]\n")
    message = errors_of(lambda: config.load(Recipe, path, [text]))
    assert message.startswith(f"override {text!r}") and what in message


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Ship three configs."""
    texts = {
        "crop/small": "height: 2\n",
        "crop/bad": "width: 1\nheigth: 2\n",
        "stage/nested": "name: a\ncrop: crop/small\n",
    }
    for key, text in texts.items():
        path = tmp_path / f"{key}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(resources, "configs", lambda: {key: tmp_path / f"{key}.yaml" for key in texts})


@pytest.mark.usefixtures("shipped")
def test_a_name_where_a_mapping_is_wanted_reads_the_shipped_config(tmp_path):
    path = write(tmp_path, "stages: [{name: a, crop: crop/small}]\n")
    assert config.load(Recipe, path).stages[0].crop == Crop(height=2)
    assert config.load(Recipe, path, ["stages.0.crop.width=3"]).stages[0].crop == Crop(height=2, width=3)


@pytest.mark.usefixtures("shipped")
def test_errors_around_includes_name_the_file_or_the_nearest_config():
    unknown = errors_of(lambda: config.from_dict(Stage, {"name": "a", "crop": "crop/smal"}, "a.yaml"))
    assert "Did you mean crop/small?" in unknown
    inside = errors_of(lambda: config.from_dict(Stage, {"name": "a", "crop": "crop/bad"}, "a.yaml"))
    assert inside.startswith("configs/crop/bad.yaml:2: crop.heigth: ") and "Did you mean height?" in inside
    nested = errors_of(lambda: config.from_dict(Recipe, {"stages": ["stage/nested"]}, "a.yaml"))
    assert "includes no other" in nested
