"""Starting programs that train and tell of it in JSON, on some of the cores, and writing down how they were started."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from measuring import matrix_product_rate

from parallelcnn.comm import mpirun

CLONE = Path(__file__).resolve().parents[1]
# Ways to set each framework up, in the words of its program in scripts/peers, which explains them; the one that was the
# quickest where this was written comes first.
PEERS = {
    "PyTorch": ("pytorch", ("channels_last", "eager", "compiled", "ddp", "ddp_channels_last")),
    "Keras": ("keras", ("function", "fit_many_steps", "fit", "fit_xla", "function_xla")),
    "JAX": ("jax", ("step", "reduce_window", "scan")),
    "Flux": ("flux", ("julia_threads", "blas_threads", "both_threads")),
}
# Whoever calls may have set them for something else; each program asks for as many threads as it gets cores.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "SLURM_", "HYDRA_", "MPI_", "MPIEXEC_")


def peer_command(framework: str, variant: str, cores: int) -> list[str]:
    """How the program of a framework is started."""
    program = CLONE / "scripts" / "peers" / f"train_{PEERS[framework][0]}.py"
    return [sys.executable, str(program), "--variant", variant, "--threads", str(cores)]


def on_ranks(ranks: int, command: Sequence[str]) -> list[str]:
    """The command on so many ranks; on one, as it is."""
    return [mpirun(), "-n", str(ranks), *command] if ranks > 1 else list(command)


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a command prints.

    Args:
        environment: variables added to this process's.

    Raises:
        SystemExit: if it fails, with what it said; with exit code 2 if it was called with bad input.
    """
    variables = {name: value for name, value in os.environ.items() if name not in _THREAD_VARIABLES}
    done = subprocess.run(command, capture_output=True, text=True, env={**variables, **(environment or {})})
    if done.returncode == 2:  # bad input, told in the last line
        print(done.stderr.strip().rpartition("\n")[2], file=sys.stderr)
        sys.exit(2)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def run_program(command: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The line of JSON that a program of scripts/peers prints last; see `run`."""
    return json.loads(run(command, environment).splitlines()[-1])


@contextlib.contextmanager
def on_cores(cores: int) -> Iterator[None]:
    """Inside, this process and those it starts run on so many of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def matrix_product_rate_of(cores: int) -> float:
    """What so many processes together, each on one thread, reach in numpy's float32 matrix product [GFLOP/s]."""
    with ProcessPoolExecutor(cores) as pool:
        return sum(pool.map(matrix_product_rate, [512] * cores, [1.0] * cores))


def summary_of(command: Sequence[str]) -> dict[str, Any]:
    """The summary.json of a training that a command, `parallelcnn train` with its options, does; see `run`."""
    with tempfile.TemporaryDirectory() as folder:
        run([*command, "--out", folder])
        return json.loads(Path(folder, "summary.json").read_text())


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what an outer launcher put there; Open MPI may run as root, and many ranks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHERS)}
    kept["OMPI_ALLOW_RUN_AS_ROOT"] = kept["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    kept["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    return {**kept, **extra}


def options_as_words(options: Mapping[str, Any]) -> list[str]:
    """{"batch_size": 100} -> ["--batch-size", "100"]; None is left out."""
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def as_elsewhere(command: Sequence[str]) -> str:
    """A command as one would type it in another clone, with another data folder."""
    words = []
    for word, before in zip(command, ["", *command], strict=False):
        path = Path(word)
        if before == "--data-dir":
            word = "FOLDER"
        elif path.is_absolute():
            word = str(path.relative_to(CLONE)) if path.is_relative_to(CLONE) and path.suffix == ".py" else path.name
        words.append(word)
    return shlex.join(words)
