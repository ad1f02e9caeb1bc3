"""Output to people that never ends a run: results are in files before anything is printed."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

# What a terminal obeys rather than shows: control characters but for line end and tab, and the marks that turn the
# direction of writing, by which a name can look like another.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Return a text for people in which nothing is obeyed by a terminal: names from data may hold anything.

    Example:
        >>> print(visible("a\x1b[31m \u202eb"))
        a\x1b[31m \u202eb
    """
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def visible_json(text: str) -> str:
    r"""Return JSON of the same value in which nothing is obeyed by a terminal; line ends stay.

    Example:
        >>> print(visible_json('{"a": "\x9b31m"}'))
        {"a": "\u009b31m"}
    """
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Let nothing that the block prints, progress bars included, raise an error.

    Characters that the stream's encoding lacks become "?". Where the stream itself fails (a full disk, a pipe whose
    reader has gone), the rest of this process's output to it is dropped, and standard error says so once.

    Only for output that is not itself the result: a command whose predictions go to standard output has to fail there.
    """
    with redirect_stdout(_unfailing(sys.stdout)), redirect_stderr(_unfailing(sys.stderr)):
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:  # None: closed by the shell
                    stream.flush()


def send_to_nowhere(stream: Any) -> None:
    """Send what a stream buffers, and all that follows, to nowhere: Python would fail on it again at its end.

    Raises:
        OSError: If it is a stream without a file descriptor; or a ValueError if it is closed.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _UnfailingStream:
    """A text stream whose `write` and `flush` do not raise; all else is that of the stream behind it."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or what can be written of it."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self.write(text.encode(encoding, errors="replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._give_up(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what is buffered."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Send what is buffered, and all that follows, to nowhere, and say so."""
        with suppress(OSError, ValueError):  # a stream without a file descriptor, or a closed one
            send_to_nowhere(self._stream)
            if self._stream is sys.__stdout__:
                with suppress(OSError):
                    os.write(2, f"Output could not be written ({error}) and is dropped from here on.\n".encode())


def _unfailing(stream: Any) -> Any:
    return stream if stream is None or isinstance(stream, _UnfailingStream) else _UnfailingStream(stream)
