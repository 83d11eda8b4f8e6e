"""The line on the terminal while a command prints nothing else."""

import io
import sys
import threading
from types import SimpleNamespace

import pytest

from parallelcnn import status_line
from parallelcnn.cli.output import say
from parallelcnn.status_line import StatusLine


class Terminal(io.StringIO):
    """A terminal. `written` is set whenever something is written."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def isatty(self):
        return True

    def write(self, text):
        super().write(text)
        if text:
            self.written.set()
        return len(text)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(status_line, "_SILENT", 0.03)
    monkeypatch.setattr(status_line, "_EVERY", 0.01)
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=SimpleNamespace(_instances=[])))
    return Terminal()


def test_a_silent_command_says_what_it_does_and_removes_that_before_other_output(terminal):
    now = ["reading"]
    with StatusLine() as line:
        line.status = lambda: now[0]
        line.start(terminal)
        assert terminal.written.wait(10)
        say("found", terminal)
        before = terminal.getvalue()
        now[0] = ("computing minibatch {} (epoch {})", 3, 1)
        terminal.written.clear()
        assert terminal.written.wait(10)
    assert before.startswith("\rreading ... 0 s\x1b[K")
    assert before.endswith("\r\x1b[Kfound\n")
    after = terminal.getvalue().removeprefix(before)
    assert after.startswith("\rcomputing minibatch 3 (epoch 1) ... 0 s\x1b[K")
    assert after.endswith("\r\x1b[K")


def test_nothing_is_shown_beside_a_bar_or_where_there_is_no_terminal(terminal):
    sys.modules["tqdm"].tqdm._instances.append("a bar")
    with StatusLine() as line:
        line.start(terminal)
        assert not terminal.written.wait(0.2)
    file = io.StringIO()
    for stream in (file, None):
        with StatusLine() as line:
            line.start(stream)
            assert not terminal.written.wait(0.1)
    assert file.getvalue() == terminal.getvalue() == ""


def test_a_terminal_that_is_gone_stops_nothing(terminal, monkeypatch):
    monkeypatch.setattr(terminal, "write", lambda _: (_ for _ in ()).throw(OSError))
    with StatusLine() as line:
        line.start(terminal)
        threading.Event().wait(0.1)
        assert line._thread.is_alive()
