"""Folders of clips: captions beside the clips or in one list; a bad one is named with its place."""

import json
from pathlib import Path

import pytest

from vidiff.data.folder import MAX_CAPTION, caption_text, captions_of, checked_caption, read_folder
from vidiff.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"clip")


def by_name(folder: Path) -> dict[str, list[str] | DataError]:
    return {str(path.relative_to(folder)): captions for path, captions in read_folder(folder)}


def test_captions_stand_beside_the_clips_in_folders_of_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.MOV", "deep/er/c.webm", "note.md", "alone.txt")
    (tmp_path / "b.txt").write_text("an orc\nwalking \n")
    (tmp_path / "a.json").write_text(json.dumps({"caption": "a knight", "alt_captions": ["a soldier", "armour"]}))
    (tmp_path / "deep/er/c.txt").write_bytes(b"\xef\xbb\xbfna\xc3\xafve \xe7\x81\xab")
    assert by_name(tmp_path) == {
        "a.MOV": ["a knight", "a soldier", "armour"],
        "b.mp4": ["an orc walking"],
        "deep/er/c.webm": ["naïve 火"],
    }


def test_a_clip_without_a_caption_says_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    error = by_name(tmp_path)["a.mp4"]
    assert isinstance(error, DataError)
    assert "put it into a.txt beside the clip" in str(error)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"caf\xe9", "not UTF-8 at byte 3"),
        ("orc".encode("utf-16"), "not UTF-8 at byte 0"),
        ("orc".encode("utf-16-le"), "NUL"),
        (b"", "empty"),
        (b"\xef\xbb\xbf \n\t", "empty"),
        (b"x" * (MAX_CAPTION + 1), f"{MAX_CAPTION + 1} bytes"),
        ("é".encode() * (MAX_CAPTION // 2 + 1), f"{MAX_CAPTION + 2} bytes"),
    ],
)
def test_a_caption_that_is_no_caption_is_refused_with_its_place(data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.txt: .*{what}"):
        caption_text(data, "a.txt")


def test_right_to_left_text_and_emoji_pass_unchanged() -> None:
    for text in ("مرحبا بالعالم", "🏃🏽‍♀️ runs", "x" * MAX_CAPTION):
        assert caption_text(text.encode(), "a.txt") == text


def test_half_a_surrogate_pair_is_refused_before_it_breaks_a_file() -> None:
    with pytest.raises(DataError, match="character 4"):
        checked_caption(json.loads('"orc \\ud83d"'), "a.json")


@pytest.mark.parametrize(
    "row", [[], "text", {}, {"caption": ""}, {"caption": 3}, {"caption": "a", "alt_captions": "b"}]
)
def test_json_without_a_caption_is_refused(row: object) -> None:
    with pytest.raises(DataError, match=r"a\.json: "):
        captions_of(row, "a.json")


def test_broken_deep_and_huge_json_beside_a_clip_is_an_error_of_that_clip_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[" * 100_000)
    (tmp_path / "c.json").write_text(" " * (2 << 20))
    (tmp_path / "d.txt").write_text("fine")
    found = by_name(tmp_path)
    assert found.pop("d.mp4") == ["fine"]
    assert all(isinstance(error, DataError) and name[0] + ".json" in str(error) for name, error in found.items())


def test_a_list_in_json_lines_gives_order_captions_and_alternatives(tmp_path: Path) -> None:
    touch(tmp_path, "unlisted.mp4")
    rows = [
        {"file_name": "clips/b.mp4", "caption": "line\u2028separator", "alt_captions": ["other"]},
        {"file_name": "a.mp4", "text": "from the older name"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert by_name(tmp_path) == {"clips/b.mp4": ["line separator", "other"], "a.mp4": ["from the older name"]}
    assert list(by_name(tmp_path)) == ["clips/b.mp4", "a.mp4"]


def test_a_list_in_csv_reads_quotes_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    table = 'file_name,caption,other\r\na.mp4,"an ""orc"", walking\r\nslowly",1\r\nb.mp4,火,2\r\n'
    (tmp_path / "metadata.csv").write_bytes(table.encode("utf-8-sig"))
    assert by_name(tmp_path) == {"a.mp4": ['an "orc", walking slowly'], "b.mp4": ["火"]}


def test_a_listed_clip_with_a_bad_caption_comes_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.mp4,an orc\nb.mp4,\n")
    found = by_name(tmp_path)
    assert found["a.mp4"] == ["an orc"]
    assert "metadata.csv:3: the caption is empty" in str(found["b.mp4"])


@pytest.mark.parametrize("name", ["../x.mp4", "/etc/x.mp4", "a/../../x.mp4", "link/x.mp4"])
def test_a_list_that_names_files_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "caption": "x"}))
    with pytest.raises(DataError, match=r"metadata\.jsonl:1: .* lies outside"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("metadata.jsonl", b'{"file_name": "a.mp4", "caption": "x"}\n{', r"jsonl:2: not JSON"),
        ("metadata.jsonl", b"[]", r"jsonl:1: needs file_name"),
        ("metadata.jsonl", b'{"file_name": "a\xe9"}', "not UTF-8 at byte 16"),
        ("metadata.csv", b"name,caption\na.mp4,x\n", r"csv:2: needs file_name"),
        ("metadata.csv", b'file_name,caption\na.mp4,"x\n', r"csv:\d+: not CSV"),
        ("metadata.csv", b"file_name,caption\na.mp4," + b"x" * 200_000, r"csv:\d+: not CSV"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=what):
        read_folder(tmp_path)
