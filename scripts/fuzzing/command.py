"""The command line that is fuzzed, with what it names: environment, control groups, models of users' own."""

import io
import json
import os
import random
from pathlib import Path
from typing import Any
from unittest import mock

import parallelcnn as pc
from fuzzing.checkpoints import checkpoint_seeds, small_network
from fuzzing.descriptions import mutated_json
from fuzzing.idx import GOOD_FOLDER
from fuzzing.system import GROUP_FILES, VARIABLES, as_given, environment_of, examine_system
from fuzzing.target import Mutate
from fuzzing.watch import MEBIBYTE, Violation, examine
from parallelcnn import comm
from parallelcnn.cli import command as cli
from parallelcnn.cli import doctor, run
from parallelcnn.data import by_name, mnist
from parallelcnn.data.readers.idx import load_idx_folder
from parallelcnn.errors import InputError
from parallelcnn.files.model import save_model
from parallelcnn.training import compilation, evaluation

# What models of users' own may do wrong.
_MODEL_FILE = """
import parallelcnn as pc
def good(): return pc.Flatten(), pc.Dense(4)
def by_classes(classes): return pc.Flatten(), pc.Dense(classes)
def nothing(): return None
def empty(): return ()
def text(): return "paper"
def numbers(): return 1, 2
def raises(): raise RuntimeError("line one\\nline two")
def leaves(): raise SystemExit(3)
def recursive(): return recursive()
def huge(): return pc.Flatten(), pc.Dense(2**31 - 1), pc.Dense(2**31 - 1)
def wrong(): return pc.Dense(-1),
def asks_for_much(a, b, c): return ()
value = 5
builtin = dict
class Unprintable:
    def __repr__(self): raise ValueError("cannot be shown")
def unprintable(): return Unprintable()
def unprintable_layer(): return Unprintable(),
"""


def command_seeds() -> list[bytes]:
    groups = {"cgroup": "0::/jobs/one\n", "cpu.max": "150000 100000\n"}
    groups_1 = {"cgroup": "4:cpu,cpuacct:/one\n0::/\n", "cpu.cfs_quota_us": "200000\n", "cpu.cfs_period_us": "100000\n"}
    numbers = "--epochs 2 --batch-size 3 --learning-rate 0.5 --momentum 0.9 --nesterov --weight-decay 1e-3 --seed 7"
    small = "train --data FOLDER --batch-size 2 --model own.py:good"
    cases: list[tuple[str, dict[str, str], dict[str, str]]] = [
        ("", {}, {}),
        ("--help", {}, {}),
        ("--version", {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, groups),
        ("train --help", {"PMI_SIZE": "1", "PMI_RANK": "0"}, groups_1),
        ("info", {"OMP_NUM_THREADS": "2"}, {}),
        (f"train {numbers} --evaluate-every 2 --threads 2 --profile --out OUT", {"SLURM_CPUS_ON_NODE": "2"}, groups),
        ("train --data FOLDER --model own.py:good", {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, {}),
        ("train --data mnist --data-dir FOLDER --model lenet5", {}, {}),
        ("train --data mnist", {"PARALLELCNN_CACHE": "cache", "PARALLELCNN_MNIST_MIRRORS": "http://a http://b"}, {}),
        ("train --data FOLDER --model own.py:by_classes", {"XDG_CACHE_HOME": "/nowhere", "HOME": "x"}, {}),
        ("train --data FOLDER --model broken.py:f", {}, {}),
        ("train --data FOLDER --model letters.py:f", {}, {}),
        (f"{small} --out OUT --resume --reproducible 4 --timeout 9", {}, {}),
        (f"{small} --resume step-1.npz --verify 3 --repair majority", {}, {}),
        (f"{small} --checkpoint-every 2 --checkpoint-seconds 0.5 --keep-last 3 --keep-best --verify --out OUT", {}, {}),
        ("evaluate model.npz --data FOLDER", {"SLURMD_NODENAME": "n1"}, {}),
        ("evaluate FOLDER --data FOLDER --threads 1 --model own.py:good", {"SLURM_STEP_NUM_TASKS": "4"}, {}),
    ]
    cases += [
        (f"train --data FOLDER --model own.py:{name}", {}, {})
        for name in ("nothing", "empty", "text", "numbers", "raises", "leaves", "recursive", "huge", "wrong")
    ]
    cases += [
        (f"train --data FOLDER --model own.py:{name}", {}, {})
        for name in ("asks_for_much", "value", "builtin", "unprintable", "unprintable_layer", "missing")
    ]
    return [
        json.dumps({"arguments": arguments.split(), "environment": environment, "files": files}).encode()
        for arguments, environment, files in cases
    ]


_WORDS = (
    "--reproducible", "--verify", "--checkpoint-every", "--checkpoint-seconds", "--keep-last", "--keep-best",
    "--resume", "--repair", "--timeout", "auto", "majority", "checkpoint", "step-1.npz",
    "train", "evaluate", "info", "--help", "--version", "--data", "--data-dir", "--model", "--epochs",
    "--batch-size", "--learning-rate", "--momentum", "--nesterov", "--weight-decay", "--seed",
    "--evaluate-every", "--threads", "--profile", "--out", "--", "-", "digits", "mnist", "FOLDER", "model.npz",
    "paper", "lenet5", "own.py:good", "own.py:", ".py:f", ":", "0", "1", "2", "-1", "1e400", "nan", "inf",
    "1_0", "0x10", "\u0663", "9" * 5000, "9" * 4000, "x" * 5000, "a/" * 3000, "\udcff", "\n", "", " ", "~",
    "..", "/", "/dev/null", "/dev/zero", "/dev/tty", "/proc/self/mem", "1.5", "1e-400", "True", "@file",
    "--data=", "100000 0", "max 100000", "max", "-1", "0::/", "0:", "cpu", "4:cpu:/a:b", "0::/../..",
    "0::" + "/a" * 3000,
)  # fmt: skip


def mutated_command(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    try:
        case = json.loads(content)
        arguments, environment, files = case["arguments"], case["environment"], case["files"]
        for _ in range(rng.choice([1, 1, 2, 3])):
            choice, word = rng.random(), rng.choice(_WORDS)
            if choice < 0.3:
                arguments.insert(rng.randrange(len(arguments) + 1), word)
            elif choice < 0.6 and arguments:
                arguments[rng.randrange(len(arguments))] = word
            elif choice < 0.7 and arguments:
                del arguments[rng.randrange(len(arguments))]
            elif choice < 0.85:
                environment[rng.choice(VARIABLES)] = word
            elif choice < 0.95:
                files[rng.choice(GROUP_FILES)] = word
            else:
                return mutated_json(content.decode(), rng, mutate).encode("utf-8", "surrogatepass")
        return json.dumps(case).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return mutate(content)


def examine_command(content: bytes, folder: Path) -> InputError | None:
    """Run the command until it would train, and read what else the environment says."""
    try:
        case = json.loads(content)
    except (ValueError, RecursionError):
        case = {"arguments": content.decode("utf-8", "surrogateescape").splitlines()}
    case = case if isinstance(case, dict) else {"arguments": [case]}
    given, variables, files = (case.get(name) for name in ("arguments", "environment", "files"))
    variables, files = (value if isinstance(value, dict) else {} for value in (variables, files))
    examine_system(files, variables, folder)
    arguments = [as_given(word) for word in given] if isinstance(given, list) else []
    environment = {"PARALLELCNN_CACHE": "cache", "HOME": "home", **environment_of(variables)}
    _write_what_commands_name(folder)
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)

    def command() -> None:
        code = cli.main(arguments)
        said = output.buffer.getvalue()  # type: ignore[attr-defined]
        if code not in (0, 2) or b"Traceback" in said:
            last = said.decode("ascii", "replace").strip().splitlines()
            raise Violation(f"exit code {code}: {last[-1] if last else 'not a word'}")

    before = os.getcwd()
    os.chdir(folder)
    try:
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch("sys.stdout", output),
            mock.patch("sys.stderr", output),
            mock.patch("time.sleep"),
            mock.patch.object(comm, "world", return_value=comm.Serial()),
            mock.patch.object(comm, "mpi_library", return_value="none"),
            mock.patch.object(compilation, "compile_in_turns", return_value=0.0),
            mock.patch.object(run, "compile_in_turns", return_value=0.0),
            mock.patch.object(run, "verify", return_value=""),
            # From here on there is nothing to read.
            mock.patch.object(run.RunDirectory, "__init__", _stop),
            mock.patch.object(evaluation, "evaluate", _stop),
            mock.patch.object(doctor, "run", _stop),
            mock.patch.object(by_name, "load_digits", _four_images),
            mock.patch.object(mnist, "_download", _no_network),
        ):
            return examine(command, 256 * MEBIBYTE, forbidden=())
    finally:
        os.chdir(before)


def _write_what_commands_name(folder: Path) -> None:
    if (folder / "FOLDER").exists():
        return
    (folder / "FOLDER").mkdir()
    for name, content in GOOD_FOLDER.items():
        (folder / "FOLDER" / name).write_bytes(content)
    (folder / "own.py").write_text(_MODEL_FILE)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "letters.py").write_bytes(b"def f(): return '\xff'\n")
    for path in (folder / "model.npz", folder / "FOLDER" / "model.npz"):
        save_model(path, small_network())
    (folder / "step-1.npz").write_bytes(checkpoint_seeds()[1])


def _stop(*_: Any, **__: Any) -> None:
    raise InputError("everything is as it should be")


def _four_images() -> tuple[pc.Dataset, pc.Dataset]:
    return load_idx_folder("FOLDER")


def _no_network(*_: Any) -> None:
    raise mnist._MirrorError("is not asked")
