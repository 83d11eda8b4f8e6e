"""What a training shows on the terminal."""

import errno
import io
import re
import time
from types import SimpleNamespace

import pytest
import small
from numba import njit, types
from numba.core.event import trigger_event

import parallelcnn as pc
from parallelcnn.data.sampler import Sampler
from parallelcnn.errors import InputError
from parallelcnn.kernels._jit import kernel
from parallelcnn.training.callbacks import Training
from parallelcnn.training.progress import Progress, show_compilation

LINE = (
    r"epoch {}/2   loss \d\.\d{{4}}   test loss \d\.\d{{4}}   test accuracy \d+\.\d\d %   [\d.]+ s   [\d,]+ samples/s\n"
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Broken(io.StringIO):
    """A terminal that is gone."""

    def isatty(self):
        return True

    def write(self, _):
        raise OSError(errno.EIO, "Input/output error")


def train(**options):
    return pc.train(
        small.network(), small.dataset(211), small.dataset(97), pc.SGD(0.1), 2, 25, comm=pc.Serial(), **options
    )


def test_the_library_prints_a_line_for_each_epoch_unless_told_otherwise(capsys):
    quiet = train(verbose=0)
    train(callbacks=[SimpleNamespace(on_batch_end=lambda *_: None)], verbose=0)
    assert capsys.readouterr() == ("", "")
    for verbose in ({}, {"verbose": True}, {"verbose": 2}):
        history = train(evaluate_every=4, **verbose)
        out, err = capsys.readouterr()
        assert err == ""
        assert re.fullmatch(LINE.format(1) + LINE.format(2), out), out
    assert history.losses == quiet.losses


@pytest.mark.parametrize("verbose", [3, -1, "yes", None])
def test_another_verbose_is_refused(verbose):
    with pytest.raises(InputError, match=r"verbose must be 0 \(silent\), 1 .*, got"):
        train(verbose=verbose)


def test_a_terminal_gets_a_bar_unless_lines_are_asked_for(monkeypatch):
    for verbose, bar in ((1, True), (2, False)):
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        train(verbose=verbose)
        assert ("epoch 1/2:" in terminal.getvalue()) == bar
        assert re.search(LINE.format(2), terminal.getvalue())


@pytest.mark.parametrize("stream", [Broken(), None])
def test_output_that_cannot_be_written_ends_no_training(stream, monkeypatch):
    monkeypatch.setattr("sys.stdout", stream)
    assert train().steps == 18
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stdout", closed)
    assert train().steps == 18


def test_only_rank_0_shows_progress():
    stream = Terminal()
    progress = Progress(stream=stream)
    progress.training = Training(
        SimpleNamespace(rank=1), small.network(), pc.History([0.5], samples_seen=10), 1, Sampler(10, 10, 0), pc.SGD()
    )
    progress.on_batch_end(1, {"epoch": 1, "loss": 0.5, "samples": 10})
    progress.on_epoch_end(1, {"loss": 0.5, "test_loss": 0.5, "test_accuracy": 0.5})
    assert stream.getvalue() == ""
    with show_compilation(SimpleNamespace(rank=1), stream):
        compile_something(kernel(triple))
    assert stream.getvalue() == ""


def triple(x):
    return 3 * x


def compiled(dispatcher):
    """What numba reports of a compilation that does not fail."""
    done = SimpleNamespace(stats=dispatcher.stats, py_func=triple, overloads={(types.int64,): None})
    return {"dispatcher": done, "args": [types.int64]}


def compile_something(dispatcher):
    """Kernels, one of which compiles a function of its own, as numba reports it."""
    with trigger_event("numba:compile", data=compiled(dispatcher)):
        pass
    outer, inner = map(compiled, (dispatcher, njit(triple)))
    with trigger_event("numba:compile", data=outer), trigger_event("numba:compile", data=inner):
        pass


def test_a_refused_compilation_is_not_counted():
    stream = io.StringIO()
    with show_compilation(pc.Serial(), stream):
        with pytest.raises(KeyError), trigger_event("numba:compile", {"dispatcher": kernel(triple), "args": []}):
            raise KeyError
        compile_something(kernel(triple))
    assert stream.getvalue().splitlines()[1:] == ["compiled 2 kernels in 0.0 s"]


def test_compiling_is_said_before_it_starts_and_when_it_is_done():
    stream, terminal = io.StringIO(), Terminal()
    with show_compilation(pc.Serial(), stream):
        assert stream.getvalue() == ""
        with trigger_event("numba:compile", data=compiled(kernel(triple))):
            assert stream.getvalue() == "compiling kernels (once; later starts take them from the cache) ...\n"
        compile_something(kernel(triple))
    assert stream.getvalue().splitlines()[1:] == ["compiled 3 kernels in 0.0 s"]
    with show_compilation(pc.Serial(), terminal):
        compile_something(kernel(triple))
    assert " ... 2 kernels done, 0 s" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[Kcompiled 2 kernels in 0.0 s\n")
    with show_compilation(pc.Serial(), Broken()):
        compile_something(kernel(triple))


@pytest.mark.parametrize("terminal", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_the_seconds_advance_while_a_kernel_takes_long(terminal, monkeypatch):
    for pause in ("_OFTEN", "_SELDOM"):
        monkeypatch.setattr(f"parallelcnn.training.progress.{pause}", 0.02)
    with (
        show_compilation(pc.Serial(), terminal),
        trigger_event("numba:compile", data=compiled(kernel(triple))),
    ):
        deadline = time.monotonic() + 20
        while terminal.getvalue().count("... 0 kernels done") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert terminal.getvalue().count("... 0 kernels done, ") >= 3
    back = r"\r\x1b\[K" if terminal.isatty() else r"done, 0 s\n"
    assert re.search(rf"{back}compiled 1 kernel in \d\.\d s\n$", terminal.getvalue())


def test_a_start_with_a_warm_cache_says_nothing_nor_does_a_function_that_is_compiled_quickly(monkeypatch):
    stream = io.StringIO()
    with show_compilation(pc.Serial(), stream):
        compile_something(njit(triple))
    assert stream.getvalue() == ""
    monkeypatch.setattr("parallelcnn.training.progress._SHORT", -1.0)
    with show_compilation(pc.Serial(), stream):
        compile_something(njit(triple))
    assert stream.getvalue() == "compiling kernels ...\ncompiled 2 kernels in 0.0 s\n"
