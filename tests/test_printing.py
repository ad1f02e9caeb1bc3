import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from prime_xmc import app
from prime_xmc.printing import unfailing_output, visible, visible_json


def test_what_can_be_written_is_written(capsys):
    with unfailing_output():
        print("P@1 – 50 %")
        sys.stderr.write("a warning")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("P@1 – 50 %\n", "a warning")


def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    table = Table("–")
    table.add_row("•")
    with unfailing_output():
        Console(width=40).print(table)
        print("done")
    written = raw.getvalue().decode("ascii")
    assert "?" in written
    assert written.endswith("done\n")


def test_a_closed_stream(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    with unfailing_output():
        print("nowhere")


@pytest.mark.parametrize("target", ["/dev/full", "a pipe without a reader", "closed"])
def test_a_process_ends_with_status_0_although_its_output_cannot_be_written(target):
    """Python itself flushes the output at the end, and would fail then."""
    code = "from prime_xmc.printing import unfailing_output\nwith unfailing_output():\n    print('x' * 100_000)\n"
    code += "print('after it')"
    read, write = os.pipe()
    os.close(read)
    stdout = os.open(target, os.O_WRONLY) if target == "/dev/full" else write
    command = [sys.executable, "-c", code]
    if target == "closed":
        command = ["sh", "-c", 'exec "$0" "$@" >&-', *command]
    env = os.environ | {"PYTHONPATH": str(Path(sys.modules["prime_xmc"].__file__).parents[1])}
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert ("could not be written" in done.stderr) is (target != "closed")


def test_other_errors_are_raised():
    with pytest.raises(ZeroDivisionError), unfailing_output():
        print(1 / 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red cat – 猫\n\tb", "a red cat – 猫\n\tb"),
        ("\x1b]0;title\x07\x1b[31mred", r"\x1b]0;title\x07\x1b[31mred"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("abc\u202edef\u2066", r"abc\u202edef\u2066"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, shown):
    assert visible(text) == shown


def test_json_for_a_terminal_has_the_same_value():
    text = json.dumps({"a": "\x9b31m\u202e\x7f\x1b – 猫"}, ensure_ascii=False) + "\n"
    shown = visible_json(text)
    assert json.loads(shown) == json.loads(text)
    assert shown == '{"a": "\\u009b31m\\u202e\\u007f\\u001b – 猫"}\n'


def test_messages_of_the_log_are_shown(caplog):
    handler = logging.StreamHandler(io.StringIO())
    handler.addFilter(app._VisibleMessages())
    handler.handle(logging.LogRecord("x", logging.WARNING, "", 0, "label %s", ("\x1b[31mred",), None))
    assert handler.stream.getvalue() == "label \\x1b[31mred\n"


def test_a_message_that_does_not_fit_its_arguments_stops_nothing(capsys):
    handler = logging.StreamHandler(io.StringIO())
    handler.addFilter(app._VisibleMessages())
    record = logging.LogRecord("x", logging.WARNING, "", 0, "no place for it", (FutureWarning,), None)
    handler.handle(record)  # some libraries have such calls
    assert "Logging error" in capsys.readouterr().err
