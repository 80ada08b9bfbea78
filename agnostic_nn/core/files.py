"""Atomic file writes: a new file is completed next to the old one and renamed over it.

A reader sees either the old file or the new one, never a part of one, even if the
writer is killed at any moment.
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
except ImportError:  # Windows, where an open file cannot be removed anyway
    _locks = None  # type: ignore[assignment]

__all__ = [
    "expect_path",
    "expect_place",
    "is_file_object",
    "kind_of",
    "replacing",
    "write_text",
]

_MAX_NAME_BYTES = 255  # bytes of a name, on all common file systems
_HEX_DIGITS = 8


def expect_path(name: str, value: Any) -> str:
    """Return `value`, the argument that errors call `name`, as a string.

    Raises
    ------
    TypeError
        If `value` is neither a string nor a path.
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


def is_file_object(value: Any, method: str) -> bool:
    """Return whether `value` is an open file, not a path: it has the `method`.

    method: "read" or "write".
    """
    is_path = isinstance(value, str | os.PathLike | type)
    return not is_path and callable(getattr(value, method, None))


def expect_place(path: str) -> None:
    """Raise OSError unless `path` is not a folder and its parent folder exists.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If the parent folder of `path` does not exist, or is a file.
    IsADirectoryError
        If `path` is a folder.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        raise IsADirectoryError(f"expected a path of a file, but {path} is a folder")
    failure = f"{path} cannot be written, as"
    if not folder.exists():
        raise FileNotFoundError(f"{failure} there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{failure} {folder} is not a folder")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file for writing and reading; it replaces `path` when the block ends.

    At the end the file is flushed to the disk, then renamed, then its folder is
    flushed. If the block raises, the old file stays unchanged and the new one is
    removed. A process that is killed leaves a file `.name.xxxxxxxx` (eight hexadecimal
    digits), which the next call with the same path removes. Files of a writer that is
    still running are locked, and are not removed.

    The new file gets the mode of the old one, and its owner and group if the system
    allows it. If `path` is a symbolic link, the file that it points to is replaced, in
    its own folder.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` is a folder, device, pipe or socket.
    """
    caller_path = os.fspath(path)
    target = _target(path)
    old = _status(target)
    stem = _stem(target.name)
    try:
        _remove_leftovers(target.parent, stem)
        mode = 0o666 if old is None else stat.S_IMODE(old.st_mode)
        number, new = _create(target.parent, stem, mode)
    except OSError as error:
        raise _with_path(error, caller_path) from None
    try:
        with os.fdopen(number, "w+b") as file:
            try:
                yield file
                file.flush()
                if old is not None:
                    _take_over(file.fileno(), new, old)
                os.fsync(file.fileno())
                # rename before closing the file, which releases the lock
                if _locks is not None:
                    os.replace(new, target)
            except OSError as error:
                if error.filename in (None, os.fspath(new)):
                    raise _with_path(error, caller_path) from None
                raise
        if _locks is None:  # Windows cannot rename an open file
            os.replace(new, target)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically, as `replacing` does.

    A device or a pipe is written to directly.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = stat.S_IFREG
    # such as /dev/stdout, which cannot be replaced
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        with open(path, "wb") as file:
            file.write(text.encode())
        return
    with replacing(path) as new:
        new.write(text.encode())


def kind_of(mode: int) -> str:
    """Describe the type of a file with this mode, such as "a directory"."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _target(path: str | os.PathLike[str]) -> Path:
    """Return the path to replace, after following symbolic links."""
    link = Path(path)
    if not link.is_symlink():
        return link
    target = Path(os.path.realpath(link))
    if target.is_symlink():  # the links form a loop
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return target


def _status(target: Path) -> os.stat_result | None:
    """Return the status of the old file, or None if it does not exist."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        reason = os.strerror(errno.EISDIR)
        raise IsADirectoryError(errno.EISDIR, reason, os.fspath(target))
    if not stat.S_ISREG(status.st_mode):
        reason = f"expected a file to replace, but there is {kind_of(status.st_mode)}"
        raise OSError(errno.EINVAL, reason, os.fspath(target))
    return status


def _stem(name: str) -> str:
    """Return the part of the name that all temporary files for one path share.

    A long name is replaced by its hash, so that the temporary name is not too long.
    """
    raw = os.fsencode(name)
    if len(raw) + _HEX_DIGITS + 2 <= _MAX_NAME_BYTES:
        return name
    return sha256(raw).hexdigest()


def _create(folder: Path, stem: str, mode: int) -> tuple[int, Path]:
    """Create a new file; return its descriptor, open and locked, and its path."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_CLOEXEC", 0)
    while True:
        new = folder / f".{stem}.{token_hex(_HEX_DIGITS // 2)}"
        try:
            number = os.open(new, flags, mode)
        except FileExistsError:
            continue
        try:
            _lock(number)
            # another process may have removed it as a leftover before it was locked
            if os.fstat(number).st_nlink:
                return number, new
        except BaseException:
            os.close(number)
            new.unlink(missing_ok=True)
            raise
        os.close(number)


def _lock(number: int, wait: bool = True) -> bool:
    """Lock an open file, and return whether that succeeded.

    It fails if another process holds the lock, or the file system does
    not support locks.
    """
    if _locks is None:
        return True
    try:
        _locks.flock(number, _locks.LOCK_EX | (0 if wait else _locks.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_leftovers(folder: Path, stem: str) -> None:
    """Remove temporary files for the same path whose writers were killed."""
    matches = re.compile(rf"\.{re.escape(stem)}\.[0-9a-f]{{{_HEX_DIGITS}}}").fullmatch
    with os.scandir(folder) as entries:
        leftovers = [entry.path for entry in entries if matches(entry.name)]
    for path in leftovers:
        with suppress(OSError):
            _remove_unlocked(path)


def _remove_unlocked(path: str) -> None:
    """Remove a regular file unless a running writer holds its lock."""
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
    status = os.fstat(number)
    if (status.st_uid, status.st_gid) != (old.st_uid, old.st_gid):
        with suppress(OSError):
            os.fchown(number, old.st_uid, old.st_gid)
    os.fchmod(number, stat.S_IMODE(old.st_mode))


def _with_path(error: OSError, path: str) -> OSError:
    """Return the error with the caller's path instead of the temporary one."""
    if error.filename2 is not None:
        return type(error)(error.errno, error.strerror, path)
    error.filename = path
    return error


def _flush_folder(folder: Path) -> None:
    """Flush the entry of a folder that `os.replace` changed, if it can be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
