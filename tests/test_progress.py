"""Bars in a terminal, and silence elsewhere."""

import sys

from prime_xmc.progress import track


class Terminal:
    """A standard error that says it is a terminal, or not."""

    def __init__(self, is_terminal: bool):
        self.is_terminal = is_terminal
        self.written = ""

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass


def test_nothing_is_written_where_there_is_no_terminal(monkeypatch):
    stream = Terminal(False)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(track(range(3), "count")) == [0, 1, 2]
    assert stream.written == ""


def test_a_terminal_shows_what_is_done(monkeypatch):
    stream = Terminal(True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track(iter("ab"), "count", total=2)) == ["a", "b"]
    assert "count" in stream.written
