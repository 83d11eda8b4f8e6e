"""Show the progress of training, and of compiling kernels, on the terminal or in a notebook."""

import contextlib
import math
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
from numba.core.event import Event, Listener, install_listener

from parallelcnn.comm import Transport
from parallelcnn.errors import InputError
from parallelcnn.status_line import is_terminal, make_room
from parallelcnn.training.callbacks import Callback, Logs
from parallelcnn.wording import plural

_SHORT = 2.0  # a shorter compilation needs no message [s]
_OFTEN = 0.5  # between two updates of a line on the terminal [s]
_SELDOM = 10.0  # between two lines in a file [s]


def check_verbose(verbose: int) -> None:
    if not isinstance(verbose, int) or verbose not in (0, 1, 2):
        raise InputError(
            f"verbose must be 0 (silent), 1 (a progress bar on a terminal, otherwise a line for each epoch) "
            f"or 2 (a line for each epoch), got {verbose!r}"
        )


class Progress(Callback):
    """Show progress on rank 0: a bar on a terminal and in a notebook, and a line for each epoch.

    Errors of writing are ignored, so that they never stop training.

    Args:
        bar: whether to show a bar on a terminal and in a notebook.
        stream: where to print; stdout by default.
    """

    def __init__(self, *, bar: bool = True, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._shows_bar = bar and (is_terminal(self._stream) or in_notebook())
        self._bar: Any = None
        self._samples_done = 0
        self._seconds_before = 0.0

    def on_resume(self, logs: Logs) -> None:
        """Count from here: the loss and rate of the first epoch refer to the rest of that epoch."""
        self._count_anew()

    def on_batch_end(self, step: int, logs: Logs) -> None:
        self._samples_done += logs["samples"]
        if self._shows_bar and self.training.comm.rank == 0:
            self._advance_bar(logs["epoch"], logs["samples"], logs["loss"])
            if self._samples_done >= self.training.samples_in(
                logs["epoch"]
            ):  # while the network is evaluated, no bar advances
                self.close()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        seconds = self.training.history.train_seconds - self._seconds_before
        rate = self._samples_done / seconds if seconds > 0 else math.nan
        self._count_anew()
        if self.training.comm.rank == 0:
            role, name = ("val", "validation") if "val_loss" in logs else ("test", "test")
            shown, test_loss = logs.get(f"{role}_accuracy"), logs[f"{role}_loss"]
            accuracy = "" if shown is None else f"   {name} accuracy {percent(shown)}"
            known = ("loss", "step", "epoch", f"{role}_loss", f"{role}_accuracy")
            numbers = {name: value for name, value in logs.items() if name not in known and np.ndim(value) == 0}
            others = "".join(f"   {name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())
            _print(
                f"epoch {epoch}/{self.training.epochs}   loss {logs['loss']:.4f}   {name} loss {test_loss:.4f}"
                f"{accuracy}{others}   {seconds:.2f} s   {rate:,.0f} samples/s",
                self._stream,
            )

    def _count_anew(self) -> None:
        self.close()
        self._seconds_before = self.training.history.train_seconds
        self._samples_done = 0

    def close(self) -> None:
        """Remove the bar from the terminal."""
        bar, self._bar = self._bar, None
        if bar is not None:
            with contextlib.suppress(OSError, ValueError):
                bar.close()

    def _advance_bar(self, epoch: int, samples: int, loss: float) -> None:
        make_room()
        try:
            if self._bar is None:
                self._bar = _bar_class()(
                    total=self.training.samples_in(epoch),
                    desc=f"epoch {epoch}/{self.training.epochs}",
                    unit=" samples",
                    leave=False,
                    file=self._stream,
                    dynamic_ncols=True,
                )
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self._bar.update(samples)
        except (OSError, ValueError):  # the terminal is gone, or the stream is closed
            self._shows_bar = False


@contextlib.contextmanager
def show_compilation(comm: Transport, stream: TextIO | None = None) -> Iterator[None]:
    """Context in which rank 0 shows the progress of compiling kernels. It prints nothing if all are in the cache.

    Args:
        stream: where to print; stdout by default.
    """
    if comm.rank != 0:
        yield
        return
    shown = _Compilation(stream or sys.stdout)
    with install_listener("numba:compile", shown):
        try:
            yield
        finally:
            shown.finish()


class _Compilation(Listener):
    """Print the progress of numba's compilations. They are nested: a kernel also compiles the functions it calls.

    On a terminal and in a notebook the number of kernels and the seconds advance, also while one kernel takes long.
    Elsewhere, such as under mpirun, there is a line with them every ten seconds.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._on_terminal = is_terminal(stream) or in_notebook()
        self._started_at: list[float] = []
        self._announced = ""
        self._done = 0
        self._seconds = 0.0
        self._finished = threading.Event()
        self._counter = threading.Thread(target=self._count_seconds, name="parallelcnn progress", daemon=True)

    def on_start(self, event: Event) -> None:
        self._started_at.append(time.perf_counter())
        # Kernels of user-defined functions are never cached, and compile quickly.
        cached = getattr(event.data["dispatcher"].stats, "cache_path", None) is not None
        if not self._announced and (cached or self._seconds > _SHORT):
            once = " (once; later starts take them from the cache)" if cached else ""
            self._announced = f"compiling kernels{once} ..."
            _print(self._announced, self._stream, end="" if self._on_terminal else "\n")
            self._counter.start()

    def on_end(self, event: Event) -> None:
        started_at = self._started_at.pop()
        if self._started_at:
            return
        # A rank that waits for its turn refuses to compile: the kernel is then not there.
        self._done += tuple(event.data["args"]) in event.data["dispatcher"].overloads
        self._seconds += time.perf_counter() - started_at
        if self._announced and self._on_terminal:
            self._show(self._seconds)

    def _count_seconds(self) -> None:
        while not self._finished.wait(_OFTEN if self._on_terminal else _SELDOM):
            with contextlib.suppress(IndexError):  # no compilation runs at the moment
                self._show(self._seconds + time.perf_counter() - self._started_at[0])

    def _show(self, seconds: float) -> None:
        text = f"{self._announced} {plural(self._done, 'kernel')} done, {seconds:.0f} s"
        if self._on_terminal:
            _print(f"\r{text} ", self._stream, end="")
        else:
            _print(text, self._stream)

    def finish(self) -> None:
        self._finished.set()
        if self._counter.is_alive():
            self._counter.join()
        if self._announced:
            back = "\r\x1b[K" if self._on_terminal else ""
            _print(f"{back}compiled {plural(self._done, 'kernel')} in {self._seconds:.1f} s", self._stream)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def _bar_class() -> Any:
    if not in_notebook():
        from tqdm import tqdm

        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets it warns, and shows a bar of characters
        from tqdm.auto import tqdm as notebook_tqdm
    return notebook_tqdm


def percent(accuracy: float | None) -> str:
    """Format an accuracy in per cent."""
    return "unknown" if accuracy is None else f"{100 * accuracy:.2f} %"


def _print(text: str, stream: TextIO | None, end: str = "\n") -> None:
    make_room()
    with contextlib.suppress(OSError, ValueError):
        print(text, end=end, file=stream, flush=True)
