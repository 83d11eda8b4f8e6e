"""What a reader of files may do, whatever it is fed, and a watch over it while it does.

It reads what is there, or refuses it with an error of this library's own, in one sentence; it neither takes long, nor
more memory than the file can account for, nor writes, starts, imports, compiles or unpickles anything.
"""

import contextlib

# Codecs and modules that are imported when they are needed: that is not the input's doing.
import difflib  # noqa: F401
import encodings.cp437
import encodings.utf_32_be
import encodings.utf_32_le  # noqa: F401
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

from parallelcnn.errors import InputError

MEBIBYTE = 2**20
_LONGEST_SENTENCE = 2500  # characters; see `errors.shown`
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Events of Python's own audit, by what they mean.
_NEVER = (
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.utime", "os.setxattr", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
    "os.system", "os.startfile", "os.kill", "pickle.find_class", "subprocess.Popen", "pty.spawn", "socket.bind",
    "socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request", "shutil.rmtree",
    "tempfile.mkstemp", "tempfile.mkdtemp",
)  # fmt: skip
_NEVER_IN_A_READER = ("exec", "compile", "import", "marshal.loads", "ctypes.dlopen")


class Violation(AssertionError):
    """Something was done that no input may bring about."""


def examine(
    call: Callable[[], Any], most_bytes: int, most_seconds: float = 2.0, forbidden: tuple[str, ...] = _NEVER_IN_A_READER
) -> InputError | None:
    """Call a reader under watch.

    Args:
        call: reads.
        most_bytes: that it may allocate, all at once.
        most_seconds: of processor time.
        forbidden: events of Python's audit, beside those that nobody may cause.

    Returns:
        the error that it refuses its input with; None if it takes it.

    Raises:
        Violation: if it does anything else.
    """
    refused = None
    tracing = tracemalloc.is_tracing()
    tracemalloc.start()  # does nothing if it traces already
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        started = time.process_time()
        with _watch(forbidden) as seen:
            try:
                call()
            except InputError as error:
                refused = error
            except Violation:
                raise
            except Exception as error:
                raise Violation(f"{type(error).__name__}{_place(error)}: {shortened(str(error))}") from error
        seconds = time.process_time() - started
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not tracing:
            tracemalloc.stop()
    if seen:
        raise Violation(f"it did what nobody asked for: {seen[0]}")
    if peak - before > most_bytes:
        raise Violation(
            f"it allocated {(peak - before) / MEBIBYTE:.1f} MiB where {most_bytes / MEBIBYTE:.1f} should do"
            f"{_place(refused)}"
        )
    if seconds > most_seconds:
        raise Violation(f"it took {seconds:.1f} s, more than {most_seconds:g}{_place(refused)}")
    if refused is not None:
        _check_sentence(refused)
    return refused


def _check_sentence(error: InputError) -> None:
    sentence = str(error)
    # What the command line could not decode is printed escaped, see `cli`.
    if not "".join(letter for letter in sentence if not "\udc80" <= letter <= "\udcff").isprintable():
        raise Violation(f"its sentence holds what is no letter{_place(error)}: {shortened(sentence)!r}")
    if len(sentence) > _LONGEST_SENTENCE:
        raise Violation(f"its sentence has {len(sentence):,} letters{_place(error)}: {shortened(sentence)!r}")


@contextlib.contextmanager
def _watch(forbidden: tuple[str, ...]) -> Iterator[list[str]]:
    """The forbidden events that happen inside, in words."""
    global _watched, _seen
    if not _hooked:
        sys.addaudithook(_on_event)  # which cannot be taken away again
        _hooked.append(True)
    seen: list[str] = []
    # That Python keeps this library's modules compiled is not the input's doing either.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    _watched, _seen = frozenset((*_NEVER, *forbidden)), seen
    try:
        yield seen
    finally:
        _watched = frozenset()
        sys.dont_write_bytecode = before


_hooked: list[bool] = []
_watched: frozenset[str] = frozenset()
_seen: list[str] = []


def _on_event(event: str, arguments: tuple) -> None:
    # It takes down and does not raise: the reader might catch that.
    if not _watched:
        return
    if event in _watched or (event == "open" and _writes(*arguments)):
        _seen.append(shortened(f"{event} {arguments!r}"))


def _writes(path: Any, mode: str | None, flags: int) -> bool:
    return bool(flags & _WRITING)


def _place(error: BaseException | None) -> str:
    """Where in the package an exception came from, such as " (npz.py, line 90)"."""
    place, traceback = "", error.__traceback__ if error else None
    while traceback is not None:
        folder, file = os.path.split(traceback.tb_frame.f_code.co_filename)
        if f"{os.sep}parallelcnn" in folder and "scripts" not in folder and "tests" not in folder:
            place = f" ({file}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


def shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."
