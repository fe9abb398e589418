import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vidiff import files
from vidiff.errors import ResourceError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "clip.mp4"
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.suffix == ".mp4" and temporary.parent == path.parent and not path.exists()
    assert path.read_bytes() == b"new" and names(path.parent) == ["clip.mp4"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_is_renamed_as_one(tmp_path):
    with files.atomic_path(tmp_path / "frames") as temporary:
        temporary.mkdir()
        (temporary / "0.png").write_bytes(b"a")
    assert names(tmp_path) == ["frames"] and names(tmp_path / "frames") == ["0.png"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(ResourceError, match="nothing was written"), files.atomic_path(tmp_path / "a"):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask_whoever_wrote_the_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with files.atomic_path(tmp_path / "a") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_named_with_what_is_needed_and_free(tmp_path, monkeypatch, call):
    files.write_text(tmp_path / "a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ResourceError, match=r"a\.txt: no space left \(4\.9 KiB needed, .* free\)"):
        files.write_bytes(tmp_path / "a.txt", b"x" * 5000)
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_the_file_is_flushed_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    files.write_text(tmp_path / "a.txt", "x")
    assert [Path(call).name.split("-")[0] for call in calls] == [".tmp", "replace", tmp_path.name.split("-")[0]]
    assert calls[-1] == str(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    files.write_text(tmp_path / "a", "x")
    with pytest.raises(ResourceError, match="a file is where a folder should be"):
        files.write_text(tmp_path / "a" / "b", "x")


def test_a_line_after_a_torn_one_stands_alone(tmp_path):
    path = tmp_path / "log.jsonl"
    files.append_line(path, "one")
    with path.open("ab") as file:
        file.write(b"to")
    files.append_line(path, "three")
    assert path.read_text() == "one\nto\nthree\n"
    with pytest.raises(ValueError, match="line feed"):
        files.append_line(path, "a\nb")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_on_a_full_disk_is_an_error(tmp_path):
    (tmp_path / "log").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="no space left"):
        files.append_line(tmp_path / "log", "x")


def test_sha256_is_that_of_the_standard(tmp_path):
    files.write_text(tmp_path / "a", "abc")  # FIPS 180-2, appendix B.1
    assert files.sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sizes_are_readable():
    assert [files.size_text(n) for n in (12, 1536, 3 << 20, 5 << 30)] == ["12 bytes", "1.5 KiB", "3.0 MiB", "5.0 GiB"]


def test_a_second_holder_is_refused_with_the_first_ones_name(tmp_path):
    holder = rf"in use by process {os.getpid()} on .* since \d{{4}}-"
    with files.run_lock(tmp_path), pytest.raises(ResourceError, match=holder), files.run_lock(tmp_path):
        pass
    with files.run_lock(tmp_path):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from vidiff import files\n"
        "with files.run_lock(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)\n"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            with pytest.raises(ResourceError, match=f"process {holder.pid} "), files.run_lock(tmp_path):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with files.run_lock(tmp_path):
        pass


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / files.LOCK_NAME).symlink_to(target)
    with pytest.raises(ResourceError), files.run_lock(tmp_path):
        pass
    assert target.read_text() == "kept"
