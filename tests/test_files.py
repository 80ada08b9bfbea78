"""Files are replaced atomically; modes and symbolic links are kept."""

import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from agnostic_nn.core import files
from agnostic_nn.core.files import replacing, write_text

posix = pytest.mark.skipif(
    os.name != "posix", reason="links, modes and pipes as POSIX has them"
)


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_old_file_remains_until_the_block_ends_and_if_it_raises(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("new")
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755, 0o666, 0o777])
def test_the_mode_of_the_old_file_is_kept(tmp_path, mode):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as file:
        temporary_mode = os.fstat(file.fileno()).st_mode
        assert not stat.S_IMODE(temporary_mode) & ~mode, "others could read it"
        file.write(b"new")
    assert (mode_of(path), path.read_text()) == (mode, "new")


@posix
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "new")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == 0o640


@posix
def test_a_link_is_followed_and_not_replaced(tmp_path):
    """Also links to links, relative links, and links to files that do not exist."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    (tmp_path / "middle").symlink_to(tmp_path / "folder" / "file")
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "open").symlink_to("folder/other")
    for name, target in (("link", "file"), ("open", "other")):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "folder" / target).read_text() == "new"
    assert sorted(os.listdir(tmp_path / "folder")) == ["file", "other"]
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write_text(tmp_path / "a", "new")


@pytest.mark.parametrize("length", [1, 244, 245, 246, 250, 255])
def test_names_of_any_length_are_accepted(tmp_path, length):
    path = tmp_path / ("n" * length)
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == [path.name]


@posix
def test_names_are_measured_in_bytes(tmp_path):
    path = tmp_path / ("ü" * 127)
    write_text(path, "new")
    assert os.listdir(tmp_path) == [path.name]


KILLED = """
import os, runpy, signal, sys
replacing = runpy.run_path(sys.argv[3])["replacing"]
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    print("open", flush=True)
    sys.stdin.read()
"""


def writer(path, what):
    command = [sys.executable, "-c", KILLED, str(path), what, files.__file__]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@posix
@pytest.mark.parametrize("name", ["a", "n" * 255])
def test_the_next_writer_removes_files_of_killed_writers_but_not_of_running_ones(
    tmp_path, name
):
    path = tmp_path / name
    with writer(path, "kill") as killed:
        killed.wait(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    (abandoned,) = os.listdir(tmp_path)
    others = [".a.txt", ".a.0123abcd.bak", ".b.0123abcd", "a.0123abcd", ".a.0123ABCD"]
    for other in others:
        (tmp_path / other).write_text("mine")
    (tmp_path / f"{abandoned[:-8]}01234567").mkdir()  # not a file
    with writer(path, "wait") as running:
        assert running.stdout.readline() == "open\n"
        assert abandoned not in os.listdir(tmp_path), "the running writer removes it"
        before = set(os.listdir(tmp_path))
        write_text(path, "new")
        assert set(os.listdir(tmp_path)) == before | {name}
        running.communicate(timeout=60)
    assert path.read_text() == "half", "the last writer to end"
    assert {*os.listdir(tmp_path)} == {name, f"{abandoned[:-8]}01234567", *others}


def test_of_two_concurrent_writers_one_file_is_complete(tmp_path):
    path, errors = tmp_path / "a", []

    def write(text):
        try:
            for _ in range(20):
                write_text(path, text)
                assert set(path.read_text()) in ({"x"}, {"y"})
                assert len(path.read_text()) == 3000
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter * 3000,)) for letter in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "new")
    assert os.listdir(tmp_path) == []


@posix
def test_a_device_and_a_pipe_are_written_to_and_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="but there is a pipe"), replacing(pipe):
        pass
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "new")
    reader.join(timeout=60)
    assert received == ["new"]
    write_text(os.devnull, "new")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/a", "No such file"), ("n" * 256, "too long")],
    ids=["none", "long"],
)
def test_an_error_names_the_requested_path(tmp_path, name, reason):
    with pytest.raises(OSError, match=reason) as caught:
        write_text(tmp_path / name, "new")
    assert caught.value.filename == str(tmp_path / name)
    assert caught.value.filename2 is None


def test_without_locks_a_temporary_file_is_not_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    if files._locks is None:
        pytest.skip("no locks at all")
    temporary = tmp_path / ".a.0123abcd"
    temporary.write_text("half")
    with monkeypatch.context() as patch:
        patch.setattr(files._locks, "flock", refuse)
        write_text(tmp_path / "a", "new")
    assert temporary.exists()
    write_text(tmp_path / "a", "newer")
    assert os.listdir(tmp_path) == ["a"]
