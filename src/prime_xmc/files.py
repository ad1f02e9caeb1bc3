"""Files and folders that appear under their name only when they are complete, and locks between processes."""

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a new file beside `path`, whose place it takes at the end.

    The folder is made if need be. Where the block raises, the new file goes and what was at `path` stays. An error of
    writing, such as that of a full disk, names `path`, whichever library has written. Where `path` is a link, it stays,
    and the file that it leads to is replaced.

    Args:
        path: Name of the file.
        durable: Whether the file is on the disk, and not only on its way there, before it takes the place of another,
            and its name before the block ends.

    Raises:
        IsADirectoryError: If there is a folder of that name.
        OSError: If it cannot be written.
        ValueError: If there is something else of that name, such as a device.

    Example:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    """
    path = file_to_replace(path)
    temporary = _name_beside(path)
    with named_in_errors(temporary, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                flush(temporary)
            os.replace(temporary, path)
            if durable:
                flush(path.parent)
        except BaseException as error:
            _raise_reason(error, temporary)
            raise
        finally:
            temporary.unlink(missing_ok=True)


def file_to_replace(path: Path) -> Path:
    """Return the file that a name stands for, the one that it leads to where it is a link; it need not exist.

    To be called before the file is made, rather than when it is complete.

    Raises:
        IsADirectoryError: If there is a folder of that name.
        ValueError: If there is something else, such as a device or a named pipe, in whose place a file would come, or
            the name is the one that stands for standard output elsewhere.
    """
    if str(path) == "-":
        raise ValueError(
            "a file named - was asked for: where results may go to standard output they do so without a name, so "
            "leave it out; or give the whole path of that file"
        )
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected the name of a file", str(path))
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path} is a device, a pipe or a socket, and not a file that could be replaced: give the name of a file"
        )
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise ValueError(f"{path} is a link that leads back to itself: give the name of a file")
    return target


@contextmanager
def publishing(directory: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a new, empty folder beside `directory`, which takes that name at the end of the block.

    Where the block raises, the new folder goes and what was at `directory` stays. Of several processes that publish
    the same name at once, none fails. The files are on the disk, and not only on their way there, before an older
    folder goes; where the system can exchange two names (Linux), there is a folder of the name at every moment.

    Args:
        directory: Name of the folder; its parents are made if need be.
        replace: Whether the new folder takes the place of one that is there at the end of the block. If not, the
            folder that was published first stays, which suits a cache whose name is a fingerprint of its content.

    Example:
        with publishing(directory, replace=True) as temporary:
            write_json(temporary / "config.json", config)
    """
    temporary = _name_beside(directory)
    with named_in_errors(temporary, directory):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _set_modes(temporary)
            for path in (*temporary.rglob("*"), temporary):
                if not path.is_symlink():
                    flush(path)
            _rename_folder(temporary, directory, replace)
            flush(directory.parent)
        except BaseException as error:
            _raise_reason(error, temporary)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this name during the block, after waiting until no other process holds it.

    The system gives the lock of a process back when the process ends. The lock's file stays, and is empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot, such as some of networks
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in UTF-8, for people to read."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors to a safetensors file that those may read who may read the user's other files.

    Args:
        path: Name of the file, which is written in place: the folder around it is what becomes visible when complete.
        tensors: Tensors by name, on any device.
    """
    from safetensors.torch import save_file  # it imports torch, which takes seconds

    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)  # safetensors lets only the owner read its files


def remove_leftovers(folder: Path, *, idle_hours: float | int, everywhere: bool) -> list[Path]:
    """Remove what processes that were killed have left half written: files and folders under a temporary name.

    What a living process is writing stays. That of another machine, or of a version that did not put its process into
    the name, cannot be asked for: what it has left is removed when nothing in it has changed for some hours.

    Args:
        folder: Folder to look in; it need not exist.
        idle_hours: Hours without a change after which what cannot be asked for counts as left.
        everywhere: Whether to look in the folders within it, too.

    Returns:
        What was removed.
    """
    found: list[Path] = []
    for directory, folders, names in os.walk(folder):
        left = [
            name
            for name in (*folders, *names)
            if (match := _TEMPORARY.fullmatch(name)) and _is_left(match, directory, idle_hours)
        ]
        found += [Path(directory, name) for name in left]
        folders[:] = [name for name in folders if name not in left] if everywhere else []
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


_TEMPORARY = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})(?P<process>[0-9a-f]{8})[0-9a-f]{16}", re.DOTALL)


@contextmanager
def named_in_errors(temporary: Path, path: Path) -> Iterator[None]:
    """Let errors of the block name a file or folder, or a file in it, as it would be called in the end.

    Args:
        temporary: Its name while it is written, which errors of a full disk mean that name no file.
        path: Its name in the end.
    """
    try:
        yield
    except OSError as error:
        where = error.filename
        if not isinstance(where, str | bytes | os.PathLike) and (where is not None or error.errno not in _NO_ROOM):
            raise
        inside = temporary if where is None else Path(os.fsdecode(where))
        if error.errno is None or not inside.is_relative_to(temporary):
            raise
        reason = os.strerror(error.errno) if where is None else error.strerror  # pyarrow's is a story
        raise OSError(error.errno, reason, str(path / inside.relative_to(temporary))) from error


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_SYSTEM_ERROR = re.compile(r"\((?:os error|errno) (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)


def _raise_reason(error: BaseException, temporary: Path) -> None:
    """Raise the system's reason where a library has failed to write and does not hand on the reason as an OSError.

    What says so in words that nobody can mend, such as torch's "unexpected pos", is told by trying to write some more.

    Args:
        error: What a block has raised that writes a file, or files in a folder.
        temporary: The file or folder, whose content nobody needs any more.
    """
    if not isinstance(error, Exception) or (isinstance(error, OSError) and error.errno is not None):
        return
    found = _SYSTEM_ERROR.search(str(error))
    number = int(found[1] or found[2]) if found else _refusal(temporary)
    if number in (*_NO_ROOM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOMEM):
        raise OSError(number, os.strerror(number), str(temporary)) from error


def _refusal(temporary: Path) -> int:
    """Return the number of the error with which the system refuses more bytes for a file, or in a folder; or 0.

    They go to a file of its own, behind as many bytes as the largest one has: others may be links to what is needed.
    """
    written = [path for path in (temporary, *temporary.rglob("*")) if path.is_file()]
    beside = temporary / "more" if temporary.is_dir() else _name_beside(temporary)
    try:
        with beside.open("xb", buffering=0) as file:
            file.seek(max((path.stat().st_size for path in written), default=0))
            content = memoryview(bytes(2**16))
            while content:
                content = content[file.write(content) or 0 :]
    except OSError as refused:
        return refused.errno if refused.errno in _NO_ROOM else 0
    finally:
        with suppress(OSError):
            beside.unlink()
    return 0


def _name_beside(path: Path) -> Path:
    """Return a hidden name in the same folder, which no other process takes and which tells this one."""
    return path.with_name(f".{path.name}.{_machine()}{os.getpid():08x}{uuid4().hex[:16]}")


@cache
def _machine() -> str:
    """Return what tells apart where the number of a process has a meaning: machine, its start and its container."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # not on Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), os.readlink("/proc/self/ns/pid")]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=4).hexdigest()


def _is_alive(process: int) -> bool:
    """Return whether a process of this machine is there and has not ended."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    with suppress(OSError):  # not on Linux
        # one that has ended stays in the list until its parent has asked for its status
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def _is_left(name: re.Match[str], directory: str, idle_hours: float | int) -> bool:
    """Return whether nobody writes any more what has a temporary name."""
    if name["machine"] == _machine():
        return not _is_alive(int(name["process"], 16))
    path = Path(directory, name.string)
    try:
        changed = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except OSError:  # somebody is at it
        return False
    return time.time() - changed > 3600 * idle_hours


def _set_modes(directory: Path) -> None:
    """Give files that a library made for the owner alone the mode that the user's umask asks for."""
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _rename_folder(new: Path, directory: Path, replace: bool) -> None:
    """Rename a complete folder; one that has the name already stays, or goes once the new one is in its place."""
    outdated: list[Path] = []
    while not _renamed(new, directory) and replace:
        if _exchanged(new, directory):
            return  # `new` is the older one now, which the caller removes
        outdated.append(_name_beside(directory))
        with suppress(FileNotFoundError):  # another process has moved it for its own new folder
            os.replace(directory, outdated[-1])
    for folder in outdated:
        shutil.rmtree(folder, ignore_errors=True)


def _renamed(new: Path, directory: Path) -> bool:
    """Rename a folder and return True, or return False where the name is taken."""
    try:
        os.replace(new, directory)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


_HERE = -100  # AT_FDCWD: names are relative to the current folder
_EXCHANGE = 2  # RENAME_EXCHANGE


def _exchanged(new: Path, directory: Path) -> bool:
    """Exchange the names of two folders and return True, or return False where the system or its disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(new), _HERE, os.fsencode(directory), _EXCHANGE) == 0
