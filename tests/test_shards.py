"""Shards are read by index, whole or not at all; captions beside the clips are text or an error with its place."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from vidiff.data.shards import Member, index_shard, index_shards, shards_at
from vidiff.errors import DataError
from vidiff.files import sha256_of

SPRITES = Path(__file__).parents[2] / "shared" / "data" / "sprites"


def write_shard(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_odd_member(path: Path, **fields: object) -> Path:
    info = tarfile.TarInfo("a.mp4")
    for name, value in fields.items():
        setattr(info, name, value)
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return path


MEMBERS = {f"k{index}.{suffix}": bytes([index]) * 700 for index in range(3) for suffix in ("mp4", "txt")}


def test_every_member_is_read_from_its_place(tmp_path: Path) -> None:
    samples = index_shard(write_shard(tmp_path / "a.tar", MEMBERS))
    assert list(samples) == ["k0", "k1", "k2"]
    read = {f"{key}.{suffix}": member.read() for key, ms in samples.items() for suffix, member in ms.items()}
    assert read == MEMBERS


def test_a_leading_dot_folder_and_longer_suffixes_follow_the_layout(tmp_path: Path) -> None:
    samples = index_shard(write_shard(tmp_path / "a.tar", {"./k.mp4": b"1", "./k.seg.json": b"{}", "k.TXT": b"t"}))
    assert {key: sorted(members) for key, members in samples.items()} == {"k": ["mp4", "seg.json", "txt"]}


def test_every_cut_before_the_end_mark_is_an_error_with_shard_and_place(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", MEMBERS)
    whole = path.read_bytes()
    last = len(MEMBERS) * (512 + 1024)
    for cut in range(0, last + 512, 128):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.tar: .*at byte \d+.*copy it again"):
            index_shard(path)
    path.write_bytes(whole[: last + 512])
    assert len(index_shard(path)) == 3


def test_a_damaged_header_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", MEMBERS)
    whole = path.read_bytes()
    for header in range(0, len(MEMBERS) * 1536, 1536):
        broken = bytearray(whole)
        broken[header + 3] ^= 0x40
        path.write_bytes(broken)
        with pytest.raises(DataError, match=rf"at byte {header}\b"):
            index_shard(path)


@pytest.mark.parametrize(
    "name",
    ["../a.mp4", "/etc/a.mp4", "sub/a.mp4", "a b.mp4", "a\n.mp4", "é.mp4", "plain", ".hidden", "x" * 95 + "/.mp4"],
)
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"is not KEY\.suffix"):
        list(index_shard(write_shard(tmp_path / "a.tar", {name: b"1"})))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"])
def test_links_devices_and_unknown_members_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(DataError, match="not a plain file"):
        index_shard(write_odd_member(tmp_path / "a.tar", type=kind, linkname="/etc/passwd"))


@pytest.mark.parametrize("size", [(64 << 20) + 1, 1 << 40, -1024])
def test_impossible_sizes_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(DataError, match="says it holds"):
        index_shard(write_odd_member(tmp_path / "a.tar", size=size))


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.mp4 is there twice"):
        index_shard(write_shard(tmp_path / "a.tar", [("a.mp4", b"1"), ("a.mp4", b"2")]))


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{name}.tar", {"k.mp4": b"1"}) for name in "ab"]
    with pytest.raises(DataError, match=r"b\.tar: the key k is also in .*a\.tar"):
        list(index_shards(shards))


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match="uncompressed"):
        index_shard(tmp_path / "a.tar")


def test_a_shard_that_shrinks_after_indexing_is_named(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", MEMBERS)
    member = index_shard(path)["k2"]["mp4"]
    path.write_bytes(path.read_bytes()[: member.offset + 10])
    with pytest.raises(DataError, match=rf"a\.tar: ends inside a member at byte {member.offset + 10}"):
        member.read()
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        member.read()


def test_the_manifest_is_held_to_counts_and_bytes(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", MEMBERS)
    manifest = tmp_path / "MANIFEST.json"

    def check(entry: object) -> int:
        manifest.write_text(json.dumps({"shards": entry}))
        return len(list(index_shards([path])))

    digest = sha256_of(path)
    assert check({"a.tar": {"samples": 3, "sha256": digest}}) == 3
    for entry, what in (
        ({"a.tar": {"samples": 4, "sha256": digest}}, "holds 3 samples, its manifest says 4"),
        ({"a.tar": {"samples": 3, "sha256": "0" * 64}}, "not the bytes"),
        ({"b.tar": {"samples": 3, "sha256": digest}}, "does not list"),
        ({"a.tar": {"samples": 3}}, "not a manifest"),
        ([], "not a manifest"),
    ):
        with pytest.raises(DataError, match=what):
            check(entry)
    good = bytearray(path.read_bytes())
    good[600] ^= 1  # in the pixels, where the tar file itself has no check
    path.write_bytes(good)
    with pytest.raises(DataError, match="not the bytes"):
        check({"a.tar": {"samples": 3, "sha256": digest}})


def test_a_path_means_a_folder_a_pattern_or_one_shard(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / f"{name}.tar", {f"{name}.mp4": b"1"}) for name in ("train-1", "train-0", "val-0")]
    assert shards_at(tmp_path) == sorted(paths)
    assert shards_at(tmp_path / "train-*.tar") == [paths[1], paths[0]]
    assert shards_at(paths[2]) == [paths[2]]
    with pytest.raises(DataError, match="no file fits"):
        shards_at(tmp_path / "test-*.tar")


def test_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        index_shard(tmp_path / "missing.tar")


def test_members_are_values_that_can_be_sent_to_workers(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", MEMBERS)
    member = index_shard(path)["k1"]["txt"]
    assert Member(member.shard, member.offset, member.size) == member
    assert path.read_bytes()[member.offset : member.offset + member.size] == MEMBERS["k1.txt"]


@pytest.mark.skipif(not SPRITES.is_dir(), reason="the sprite shards are not beside this checkout")
def test_the_index_agrees_with_an_independent_reader() -> None:
    webdataset = pytest.importorskip("webdataset")
    path = SPRITES / "val-00000.tar"
    reference = {sample["__key__"]: sample for sample in webdataset.WebDataset(str(path), shardshuffle=False)}
    samples = index_shard(path)
    assert list(samples) == list(reference)
    for key in list(samples)[::40]:
        assert samples[key]["mp4"].read() == reference[key]["mp4"]
        assert samples[key]["json"].read() == reference[key]["json"]
