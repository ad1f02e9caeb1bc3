"""What to tell the user where the system refuses: disk, rights, open files, memory."""

import errno
import os

_OTHER_PLACE = "free some space there, or give a folder on another disk (run_dir=, cache_dir=, output=)"
_FILES = "allow more open files (`ulimit -n`)"
# What to do about an error of the system.
_REMEDIES = {
    errno.ENOSPC: _OTHER_PLACE,
    errno.EDQUOT: _OTHER_PLACE,
    errno.EFBIG: "it is above the size that a file may have there (`ulimit -f`, or the file system's own limit)",
    errno.EROFS: "give a folder that can be written (run_dir=, cache_dir=, output=)",
    errno.EACCES: "give one that you may use, or change its rights",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EIO: "the disk, or the way to it, fails",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_MORE_MEMORY = (
    "Give the process more memory, or let it hold less at once: in training by a lower sampling.batch_size, "
    "encoder.recompute=true or bank.placement=mmap (`python -m prime_xmc.plan` says what a training needs), elsewhere "
    "by a lower chunk"
)
# Of errors that say in words alone that there is no memory, of whatever library.
_NO_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "unable to allocate", "out of memory", "bad_alloc"),
    *("can't start new thread", "failed to map segment", "mmap failed"),
    *("could not create a primitive", "could not create a memory"),  # oneDNN's words
)


def system_message(error: BaseException) -> str | None:
    """Return what to tell the user about an error of the system, None for any other error."""
    if isinstance(error, OSError):
        return _of_files(error)
    told = str(error).partition("\n")[0]
    of_memory = isinstance(error, RuntimeError | ImportError) and any(words in told.lower() for words in _NO_MEMORY)
    if of_memory or isinstance(error, MemoryError):
        return f"there is not enough memory ({told or 'the system says no more'}). {_MORE_MEMORY}"
    return None


def _of_files(error: OSError) -> str | None:
    remedy = _REMEDIES.get(error.errno or 0)
    if error.errno == errno.ENOMEM:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{where}there is not enough memory ({error.strerror}). {_MORE_MEMORY}"
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}" + (f"; {remedy}" if remedy else "")
    if error.errno in (*_NO_ROOM, errno.EPIPE):
        return f"the output cannot be written: {error.strerror}"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: {remedy}"
    return None


def with_place(error: Exception, place: str | None) -> Exception:
    """Return an error of writing that does not say which file it is with the place where it may be, others as they are.

    Args:
        error: The error.
        place: Where files were written, for people; None: that is not known.
    """
    if place is not None and isinstance(error, OSError) and error.filename is None and error.errno in _NO_ROOM:
        return OSError(error.errno, error.strerror, place)
    return error
