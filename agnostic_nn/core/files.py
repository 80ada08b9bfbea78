"""Files: write a whole new file next to the old one, and replace the old one by a rename.

Readers see the old file or the new one, never a part of either, whatever the writer does and
whenever it is killed.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

try:
    import fcntl as _locks
except ImportError:  # Windows, which lets nobody remove a file that is open
    _locks = None  # type: ignore[assignment]

__all__ = ["expect_path", "expect_place", "kind_of", "replacing", "write_text"]

_LONGEST = 255  # bytes of a name, on all common file systems
_HEX = 8


def expect_path(name: str, value: Any) -> str:
    """Return `value`, the path called `name`, as a string.

    Raises
    ------
    TypeError
        If it is neither a string nor a path.
    ValueError
        If it is empty.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"expected {name} to be a path, got {value!r}")
    path = os.fspath(value)
    if isinstance(path, bytes):
        raise TypeError(f"expected {name} to be a path of text, got {path!r}")
    if not path:
        raise ValueError(f"expected {name} to be a path, got an empty string")
    return path


def expect_place(path: str) -> None:
    """Raise OSError unless a file at `path` could be written: its folder exists, and is one.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If the folder that `path` is in does not exist, or is a file.
    IsADirectoryError
        If `path` is a folder itself.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        raise IsADirectoryError(f"expected a path of a file, but {path} is a folder")
    if not folder.exists():
        raise FileNotFoundError(f"{path} cannot be written, as there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be written, as {folder} is not a folder")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a new file, for writing and reading, that replaces `path` when the block ends.

    The order is: the file is flushed to the disk, renamed, and its folder flushed. If the block
    raises, the old file stays as it is and the new one is removed. A process that is killed leaves
    a file `.name.xxxxxxxx` behind, eight hexadecimal digits, which the next call with the same path
    removes. Files of a writer that still runs are locked, and stay.

    The mode of an old file is kept, and its owner and group where the system allows it. A symbolic
    link is followed: the file that it names is replaced, in its own folder.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` is a folder, a device, a pipe or a socket.
    """
    named = os.fspath(path)
    target = _target(path)
    old = _status(target)
    stem = _stem(target.name)
    try:
        _remove_leftovers(target.parent, stem)
        mode = 0o666 if old is None else stat.S_IMODE(old.st_mode)
        number, new = _create(target.parent, stem, mode)
    except OSError as error:
        raise _renamed(error, named) from None
    try:
        with os.fdopen(number, "w+b") as file:
            try:
                yield file
                file.flush()
                if old is not None:
                    _take_over(file.fileno(), new, old)
                os.fsync(file.fileno())
                if _locks is not None:  # renamed before it is closed, which ends the lock
                    os.replace(new, target)
            except OSError as error:
                if error.filename in (None, os.fspath(new)):
                    raise _renamed(error, named) from None
                raise
        if _locks is None:  # no open file can be renamed there
            os.replace(new, target)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to `path` in UTF-8, as `replacing` does; to a device or a pipe, directly.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = stat.S_IFREG
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):  # such as /dev/stdout: there is nothing to keep
        with open(path, "wb") as file:
            file.write(text.encode())
        return
    with replacing(path) as new:
        new.write(text.encode())


def kind_of(mode: int) -> str:
    """Return what a file of this mode is, such as "a directory"."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _target(path: str | os.PathLike) -> Path:
    """The path to replace: that of the file which a symbolic link names, in the end."""
    found = Path(path)
    if not found.is_symlink():
        return found
    target = Path(os.path.realpath(found))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return target


def _status(target: Path) -> os.stat_result | None:
    """The status of the old file, or None where there is none."""
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(target))
    if not stat.S_ISREG(found.st_mode):
        reason = f"expected a file to replace, but there is {kind_of(found.st_mode)}"
        raise OSError(errno.EINVAL, reason, os.fspath(target))
    return found


def _stem(name: str) -> str:
    """The part of a new file's name that it shares with all others for the same path."""
    raw = os.fsencode(name)
    if len(raw) + _HEX + 2 <= _LONGEST:
        return name
    return sha256(raw).hexdigest()


def _create(folder: Path, stem: str, mode: int) -> tuple[int, Path]:
    """A new file that is open and locked."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_CLOEXEC", 0)
    while True:
        new = folder / f".{stem}.{token_hex(_HEX // 2)}"
        try:
            number = os.open(new, flags, mode)
        except FileExistsError:
            continue
        try:
            _lock(number)
            if os.fstat(number).st_nlink:  # not removed as a leftover before it was locked
                return number, new
        except BaseException:
            os.close(number)
            new.unlink(missing_ok=True)
            raise
        os.close(number)


def _lock(number: int, wait: bool = True) -> bool:
    """Lock an open file; False if another process holds it, or the file system has no locks."""
    if _locks is None:
        return True
    try:
        _locks.flock(number, _locks.LOCK_EX | (0 if wait else _locks.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_leftovers(folder: Path, stem: str) -> None:
    """Remove new files for the same path whose writers were killed."""
    ours = re.compile(rf"\.{re.escape(stem)}\.[0-9a-f]{{{_HEX}}}").fullmatch
    with os.scandir(folder) as entries:
        found = [entry.path for entry in entries if ours(entry.name)]
    for path in found:
        with suppress(OSError):
            _remove_unlocked(path)


def _remove_unlocked(path: str) -> None:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return
    if _locks is None:
        os.unlink(path)
        return
    number = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if _lock(number, wait=False):
            os.unlink(path)
    finally:
        os.close(number)


def _take_over(number: int, new: Path, old: os.stat_result) -> None:
    """Give a new file the owner, group and mode of the old one."""
    if not hasattr(os, "fchmod"):
        os.chmod(new, stat.S_IMODE(old.st_mode))
        return
    made = os.fstat(number)
    if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
        with suppress(OSError):
            os.fchown(number, old.st_uid, old.st_gid)
    os.fchmod(number, stat.S_IMODE(old.st_mode))


def _renamed(error: OSError, path: str) -> OSError:
    """The error about the path that the caller knows, rather than about the new file's own."""
    if error.filename2 is not None:
        return type(error)(error.errno, error.strerror, path)
    error.filename = path
    return error


def _flush_folder(folder: Path) -> None:
    """Flush the entry that `os.replace` made, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
