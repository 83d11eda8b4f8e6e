"""What a reader may do, whatever it is fed: read, or refuse with an InputError of one sentence; no more.

It neither takes long nor more memory than the input accounts for, nor writes, starts, imports or unpickles anything.
"""

import difflib  # noqa: F401  imported when they are needed: that is not the input's doing
import encodings.ascii
import encodings.cp437
import encodings.raw_unicode_escape
import encodings.utf_32_be
import encodings.utf_32_le  # noqa: F401
import os
import sys
import time
import tracemalloc
from pathlib import Path

import numpy.ma  # noqa: F401
from hypothesis import HealthCheck, settings

from parallelcnn.errors import InputError

MEBIBYTE = 2**20

# The examples are the same in every run, and none is kept; what else hypothesis keeps lies where pytest's things do.
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", str(Path(__file__).parent.parent / ".pytest_cache" / "hypothesis")
)
few = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
many = settings(few, max_examples=150)

_LONGEST_SENTENCE = 2500  # characters
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events of Python's own audit.
_NEVER = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.exec",
    "os.fork", "os.posix_spawn", "os.system", "os.kill", "pickle.find_class", "subprocess.Popen", "socket.connect",
    "socket.bind", "socket.getaddrinfo", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp",
}  # fmt: skip
_NEVER_IN_A_READER = {"exec", "compile", "import", "marshal.loads", "ctypes.dlopen"}


class Violation(AssertionError):
    """Something was done that no input may bring about."""


def examine(call, most_bytes, most_seconds=2.0, forbidden=_NEVER_IN_A_READER):
    """Call a reader under watch; the InputError that it raises, None if it takes its input.

    Args:
        most_bytes: that it may allocate at once.
        most_seconds: of processor time.
        forbidden: audit events, beside those that no reader may cause.

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
        seen = _Audit.begin(_NEVER | forbidden)
        try:
            call()
        except InputError as error:
            refused = error
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"{type(error).__name__}: {str(error)[:300]}") from error
        finally:
            _Audit.end()
        seconds = time.process_time() - started
        _, peak = tracemalloc.get_traced_memory()
    finally:
        if not tracing:
            tracemalloc.stop()
    if seen:
        raise Violation(f"it did what nobody asked for: {seen[0]}") from refused
    if peak - before > most_bytes:
        mebibytes = f"{(peak - before) / MEBIBYTE:.1f} MiB where {most_bytes / MEBIBYTE:.1f} should do"
        raise Violation(f"it allocated {mebibytes}") from refused
    if seconds > most_seconds:
        raise Violation(f"it took {seconds:.1f} s, more than {most_seconds:g}") from refused
    sentence = "" if refused is None else str(refused)
    if not "".join(letter for letter in sentence if not "\udc80" <= letter <= "\udcff").isprintable():
        raise Violation(f"its sentence holds what is no letter: {sentence[:300]!r}") from refused
    if len(sentence) > _LONGEST_SENTENCE:
        raise Violation(f"its sentence has {len(sentence):,} letters: {sentence[:300]!r}") from refused
    return refused


class _Audit:
    """One hook for the whole process, since hooks cannot be taken away; it notes and does not raise."""

    _hooked = False
    _watched: frozenset = frozenset()
    _seen: list = []  # noqa: RUF012

    @classmethod
    def begin(cls, watched):
        if not cls._hooked:
            sys.addaudithook(cls._on_event)
            cls._hooked = True
        cls._watched, cls._seen = frozenset(watched), []
        cls._before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        return cls._seen

    @classmethod
    def end(cls):
        cls._watched, sys.dont_write_bytecode = frozenset(), cls._before

    @classmethod
    def _on_event(cls, event, arguments):
        if cls._watched and (event in cls._watched or (event == "open" and arguments[2] & _WRITING)):
            cls._seen.append(f"{event} {arguments!r}"[:300])
