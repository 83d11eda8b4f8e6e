"""Start the programs that are measured: on ranks, on some of the cores, as one command or turn by turn."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[2]
# Every program asks for as many threads as it gets cores, whatever the caller's environment says.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
# Users have files with the bytecode of the package; without them each start would take 0.3 s longer.
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
_LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "SLURM_", "HYDRA_", "MPI_", "MPIEXEC_")


class ProgramFailed(Exception):
    """A measured program ended with an error; the message has the end of its output."""


def environment(**extra: str) -> dict[str, str]:
    """The environment without variables of a launcher. Open MPI may run as root, and more ranks than cores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    kept["OMPI_ALLOW_RUN_AS_ROOT"] = kept["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    kept["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    return {**kept, **extra}


def _to_measure(variables: Mapping[str, str] | None) -> dict[str, str]:
    left_out = (*_THREAD_VARIABLES, _NO_BYTECODE)
    kept = {name: value for name, value in environment().items() if name not in left_out}
    return {**kept, **(variables or {})}


def mpirun(python: str = sys.executable) -> str:
    """The launcher in the folder of a Python, otherwise the one on the PATH."""
    beside = Path(python).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"


def on_ranks(ranks: int, command: Sequence[str]) -> list[str]:
    """The command on so many ranks; one rank needs no launcher."""
    return [mpirun(), "-n", str(ranks), *command] if ranks > 1 else list(command)


def run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it prints.

    Raises:
        ProgramFailed: if its exit code is not 0.
        SystemExit: if its exit code is 2, bad input; the last line of its output explains it.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=_to_measure(variables))
    if done.returncode == 2:
        print(done.stderr.strip().rpartition("\n")[2], file=sys.stderr)
        sys.exit(2)
    if done.returncode != 0:
        raise ProgramFailed(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def run_json(command: Sequence[str], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON object in the last line that a command prints. Raises as `run` does."""
    lines = run(command, variables).splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        raise ProgramFailed(f"{shlex.join(command)}: printed no JSON") from None


class Contestant:
    """A program of `systems/` that waits, asleep, for its next turn (see `systems/contract.py`).

    Several of them can run at the same time: only the one whose turn it is uses the processor.

    Args:
        command: without --turns.
        folder: an empty folder, for messages to and from the program.
        variables: environment variables to set.
        limit: seconds that a start or a turn may take.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None, limit: float = 600
    ) -> None:
        self._command, self._folder, self._limit, self._turns = [*command, "--turns", str(folder)], folder, limit, 0
        with (folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_to_measure(variables),
                start_new_session=True,
            )
        try:
            self.about = self._answer("ready")
        except BaseException:
            self.close()
            raise

    def turn(self, samples: int, epochs: int) -> float:
        """Train; returns the seconds of the training loop alone."""
        self._turns += 1
        asked = self._folder / f"go-{self._turns}"
        asked.with_suffix(".unfinished").write_text(json.dumps({"samples": samples, "epochs": epochs}))
        asked.with_suffix(".unfinished").rename(asked)
        return self._answer(f"done-{self._turns}")["train_seconds"]

    def close(self) -> None:
        """Ask the program to end; kill it if it does not."""
        (self._folder / "stop").touch()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answer(self, name: str) -> dict[str, Any]:
        until = time.monotonic() + self._limit
        file = self._folder / name
        while not file.exists():
            if self._process.poll() is not None and not file.exists():
                self._fail(f"exit code {self._process.returncode}")
            if time.monotonic() > until:
                self._fail(f"no answer within {self._limit:g} s")
            time.sleep(0.002)
        return json.loads(file.read_text())

    def _fail(self, why: str) -> None:
        output = (self._folder / "output").read_text(errors="replace").strip()
        if self._process.returncode == 2:  # bad input
            print(output.rpartition("\n")[2], file=sys.stderr)
            sys.exit(2)
        raise ProgramFailed(f"{shlex.join(self._command)}: {why}\n{output[-2000:]}")


@contextlib.contextmanager
def on_cores(cores: int) -> Iterator[None]:
    """A context in which this process, and those that it starts, run on so many of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def options_as_words(options: Mapping[str, Any]) -> list[str]:
    """{"batch_size": 100} -> ["--batch-size", "100"]; None is left out."""
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]
