"""The readers that are fuzzed: small valid inputs to start from, mutations that keep their structure, the examination.

Bits flipped at random seldom get past a checksum. So archives are taken apart, their members, headers and descriptions
changed, and put together again with checksums that are right.
"""

import contextlib
import gzip
import io
import json
import math
import os
import random
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from fuzz_watch import MEBIBYTE, Violation, examine, shortened

import parallelcnn as pc
from parallelcnn import cli, comm, compilation, evaluation, run
from parallelcnn.checkpoint import Checkpoint, _sha256, load_checkpoint, save_checkpoint
from parallelcnn.data import by_name, mnist
from parallelcnn.data.idx import load_idx_folder, read_idx
from parallelcnn.data.sampler import Sampler
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.evaluation import Evaluation
from parallelcnn.history import History
from parallelcnn.model_file import load_model, save_model
from parallelcnn.npz import read_npy
from parallelcnn.preparation import facts_of, start
from parallelcnn.threads import core_quota

Mutate = Callable[[bytes], bytes]


class Target(NamedTuple):
    """Something that reads.

    Attributes:
        seeds: small valid inputs.
        examine: feeds it one input, in a folder that it may use; raises Violation.
        mutate: another input made from one, given random numbers and what changes bytes blindly.
    """

    seeds: Callable[[], list[bytes]]
    examine: Callable[[bytes, Path], InputError | None]
    mutate: Callable[[bytes, random.Random, Mutate], bytes]


# Archives of arrays


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    content: bytes
    method: int = zipfile.ZIP_STORED


def members_of(content: bytes) -> list[Member]:
    """The files in an archive; none if it is none, or a damaged one."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [
                Member(entry.filename, archive.read(entry), entry.compress_type)
                for entry in archive.infolist()
                if entry.file_size < 4 * MEBIBYTE
            ]
    except Exception:  # whatever zipfile may raise: then it is changed blindly
        return []


# Those that arrays are written with.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def archive_of(members: list[Member]) -> bytes:
    """An archive with right checksums."""
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w") as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for member in members:
            archive.writestr(zipfile.ZipInfo(member.name or "?"), member.content, member.method)
    return content.getvalue()


def npy(header: str, numbers: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An array's file, whatever its header says."""
    text = header.encode("utf-8", "replace") + b"\n"
    length = struct.pack("<H", len(text) % 2**16) if version == (1, 0) else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + numbers


def npy_of(text: str) -> bytes:
    """A string as numpy writes it."""
    content = io.BytesIO()
    np.save(content, np.array(text))
    return content.getvalue()


def string_in(content: bytes) -> str | None:
    """The string that an array's file holds; None if it holds something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.load(io.BytesIO(content), allow_pickle=False)
        return str(array[()]) if array.dtype.kind == "U" and array.shape == () else None
    except Exception:  # whatever numpy may raise: then it is no string
        return None


_DESCRS = [
    "'<f4'", "'<f8'", "'>f4'", "'|u1'", "'<U9'", "'<i8'", "'<f2'", "'|O'", "'<c16'", "'|V0'", "'<U0'", "'|S4'",
    "'<M8[s]'", "()", "[]", "[('a', '<f4')]", "('<f4', (2,))", "'(1,,2)f4,i4'", "'a4'", "'f4,f4'", "None", "5",
    "'<f4' 'x",
]  # fmt: skip
_SHAPES = [
    "()", "(0,)", "(1,)", "(3,)", "(-1,)", "(-1, -4)", "(3, 1, 3, 3)", "(1000000000, 1000000000)",
    "(99999999999999999999,)", "(True,)", "(3L,)", "3", "None", "[3]", "(1.5,)", "('3',)",
    "(1, 1, 1, 1, 1, 1, 1, 1, 1)", "(" + "1, " * 70 + ")",
]  # fmt: skip
_HEADERS = [
    "{[]: 1}",
    "{1: 2, 'a': 3}",
    "{}",
    "(((",
    "5",
    "-" * 900 + "1",
    "{'descr': '<f4'",
    "{'descr': '<f4', " * 9,
    "",
]


def mutated_npy(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """An array's file with another header, other numbers, or others in number."""
    text = string_in(content)
    if text is not None and rng.random() < 0.85:
        return npy_of(mutated_json(text, rng, mutate))
    choice = rng.random()
    if choice < 0.2:
        return mutate(content)
    place = content.find(b"\n") + 1
    header, numbers = content[10 : place - 1].decode("latin1"), content[place:]
    if choice < 0.5:
        fortran = rng.choice(["False", "False", "True", "1", "None"])
        shape = rng.choice([*_SHAPES, f"({len(numbers) // 4},)", f"({len(numbers) // 8},)"])
        header = f"{{'descr': {rng.choice(_DESCRS)}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    elif choice < 0.6:
        header = rng.choice(_HEADERS)
    elif choice < 0.75:
        header = mutate(header.encode("latin1", "replace")).decode("latin1")
    elif choice < 0.9:
        numbers = mutate(numbers)
    else:
        numbers = numbers * rng.choice([0, 2, 50]) if len(numbers) < 9999 else numbers[: rng.randrange(len(numbers))]
    version = rng.choice([(1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (9, 9)])
    return npy(header, numbers, version)


def mutated_archive(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """An archive whose members are others, or whose own bytes are."""
    members = members_of(content)
    if not members or rng.random() < 0.15:
        return mutate(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        i = rng.randrange(len(members))
        # The description decides about everything else.
        if rng.random() < 0.5:
            i = next((k for k, member in enumerate(members) if string_in(member.content)), i)
        member, choice = members[i], rng.random()
        if choice < 0.75:
            members[i] = member._replace(content=mutated_npy(member.content, rng, mutate))
        elif choice < 0.85:
            methods = [
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
                zipfile.ZIP_DEFLATED,
                zipfile.ZIP_BZIP2,
                zipfile.ZIP_LZMA,
            ]
            members[i] = member._replace(method=rng.choice(methods))
        elif choice < 0.9:
            members[i] = member._replace(
                name=rng.choice(["0.weight.npy", "../up.npy", "/up", "a\\b", "\n", member.name + "x"])
            )
        elif choice < 0.95:
            members.insert(rng.randrange(len(members) + 1), member)
        elif len(members) > 1:
            del members[i]
    archive = archive_of(members)
    if rng.random() < 0.15:
        archive = _lying_directory(archive, rng)
    return archive


_DIRECTORY_ENTRY = b"PK\x01\x02"


def _lying_directory(archive: bytes, rng: random.Random) -> bytes:
    """The archive with another number in one field of its directory: a method, a size, a place."""
    places = [i for i in range(len(archive)) if archive.startswith(_DIRECTORY_ENTRY, i)]
    offset, width = rng.choice([(6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)])
    place = rng.choice(places) + offset
    number = rng.choice([0, 1, 8, 12, 14, 93, 2**16 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)]) % 2 ** (8 * width)
    return archive[:place] + number.to_bytes(width, "little") + archive[place + width :]


# Descriptions


_ODD: list[Any] = [
    None, True, False, 0, 1, 2, 3, -1, 7, 2**31, 2**63, 2**64, 10**30, 10**4000, 0.5, 1e308, float("nan"),
    float("inf"), "", "\n", "\x1b[31m", "\ud800", "\udcff", "\u0663", "\u00b2", "relu", "tanh", "same", "valid",
    "x" * 5000, "9" * 5000, "float32", "float64", "float16", "O", "a4", "f4,f4", "(1,,2)f4,i4",
    "(9999,9999,9999)f4", "Conv2D", "Dense", "Flatten", "MaxPool2D", "Activation", "Layer", "__class__", "base",
    [], {}, [[]], [1], [1, 2], [3, 3, 3], [10**9] * 3, [2**31 - 1] * 3, [10**4000], {"a": 1},
    {"not stored": "x"}, [[1], [2]], ["a"], {"names": ["a"], "formats": ["f4"]},
]  # fmt: skip


def mutated_json(text: str, rng: random.Random, mutate: Mutate) -> str:
    """JSON with a value replaced, left out, doubled, or moved somewhere else; or with letters changed blindly."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    places = _places(value)
    choice = rng.random()
    if not places or choice < 0.05:
        return mutate(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace").replace("\0", "")
    if choice < 0.07:
        return rng.choice(["[", '{"a":', "[{"]) * rng.choice([10, 900, 20_000])
    for _ in range(rng.choice([1, 1, 2, 3])):
        parent, key = rng.choice(places)
        choice = rng.random()
        try:
            if choice < 0.6:
                parent[key] = rng.choice(_ODD)
            elif choice < 0.7:
                other, other_key = rng.choice(places)
                parent[key] = json.loads(json.dumps(other[other_key]))
            elif choice < 0.8:
                del parent[key]
            elif choice < 0.9 and isinstance(parent, list):
                parent[key:key] = [parent[key]] * rng.choice([1, 1, 2, 300])
            elif isinstance(parent[key], int):
                parent[key] = parent[key] * rng.choice([-1, 2, 1000]) + rng.choice([-1, 0, 1])
            else:
                parent[key] = [parent[key]]
        except (LookupError, TypeError, ValueError, RecursionError):
            continue  # another change has taken that place away
    with contextlib.suppress(ValueError, RecursionError):
        return json.dumps(value)
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value inside a value."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        if not isinstance(container, dict | list):
            continue
        for key, one in container.items() if isinstance(container, dict) else enumerate(container):
            places.append((container, key))
            waiting.append(one)
    return places


# IDX files


def idx(shape: tuple[int, ...], values: bytes, kind: int = 8) -> bytes:
    """An IDX file, whatever its header says."""
    return bytes([0, 0, kind % 256, len(shape) % 256]) + struct.pack(f">{len(shape)}I", *shape) + values


def idx_seeds() -> list[bytes]:
    plain = [
        idx((9,), bytes(range(9))),
        idx((3, 4), bytes(12)),
        idx((2, 5, 4), bytes(range(40))),
        idx((1, 2, 3, 1), b"abcdef"),
    ]
    packed = [gzip.compress(content, mtime=0) for content in plain]
    return [*plain, *packed, packed[0] + gzip.compress(b"", mtime=0) + bytes(9)]


def mutated_idx(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    packed = content[:2] == b"\x1f\x8b"
    if rng.random() < (0.15 if packed else 0.4):
        return mutate(content)
    with contextlib.suppress(zlib.error):
        content = zlib.decompressobj(31).decompress(content, MEBIBYTE) if packed else content
    choice = rng.random()
    if choice < 0.4 and len(content) >= 8:
        place = 4 + 4 * rng.randrange(min(content[3], 4) or 1)
        length = rng.choice([0, 1, 2, 2**16, 2**31, 2**32 - 1, len(content), rng.randrange(2**32)])
        content = content[:place] + length.to_bytes(4, "big") + content[place + 4 :]
    elif choice < 0.6:
        shape = tuple(rng.choice([1, 2, 3, 5, 300, 2**31]) for _ in range(rng.randrange(6)))
        content = idx(shape, content[8:], rng.choice([8, 8, 8, 9, 11, 12, 13, 14, 0]))
    elif choice < 0.7:
        content = content + bytes(rng.choice([1, 999, 50_000]))
    else:
        content = mutate(content)
    if rng.random() < 0.6:
        content = gzip.compress(content, mtime=0)
        choice = rng.random()
        if choice < 0.15:
            content = content[: rng.randrange(len(content) + 1)]
        elif choice < 0.3:
            content = content + rng.choice([bytes(20_000), content, b"rest", b"\x1f\x8b"])
    return content


_GOOD_FOLDER = {
    "train-images-idx3-ubyte": idx((4, 3, 2), bytes(24)),
    "train-labels-idx1-ubyte": idx((4,), bytes(range(4))),
    "t10k-images-idx3-ubyte": idx((2, 3, 2), bytes(12)),
    "t10k-labels-idx1-ubyte": idx((2,), bytes(range(2))),
}


def examine_idx(content: bytes, folder: Path) -> InputError | None:
    """The content as a file of its own, as one of a folder of four, and as a download that is to be checked."""
    place = zlib.crc32(content) % 4
    for i, (name, good) in enumerate(_GOOD_FOLDER.items()):
        (folder / name).write_bytes(content if i == place else good)
    path = folder / list(_GOOD_FOLDER)[place]
    # An IDX file that is gzipped may hold so much more than it takes.
    most_bytes = MEBIBYTE + 12 * max(len(content), _inflated_size(content)) + 1032 * len(content)
    refused = examine(lambda: read_idx(path), most_bytes)
    examine(lambda: load_idx_folder(folder), most_bytes)
    examine(lambda: mnist._damage(path, "0" * 32), most_bytes)
    return refused


def _inflated_size(content: bytes, most: int = 64 * MEBIBYTE) -> int:
    with contextlib.suppress(zlib.error):
        return len(zlib.decompressobj(31).decompress(content, most))
    return 0


# Model files


def model_seeds() -> list[bytes]:
    networks = [
        pc.NetworkHandler((pc.Dense(2),), (3,)),
        pc.NetworkHandler(
            (
                pc.Conv2D(3, 3, activation="relu"),
                pc.MaxPool2D(2),
                pc.Conv2D(2, (1, 2), stride=(1, 2), padding="same", activation="gelu", bias=False),
                pc.MaxPool2D(2, stride=1, activation="tanh"),
                pc.Flatten(),
                pc.Activation("swish"),
                pc.Dense(3),
            ),
            (1, 11, 9),
        ),
        pc.NetworkHandler(
            (pc.Conv2D(2, 1, padding=1), pc.Flatten(), pc.Dense(2, bias=False)), (2, 3, 3), dtype=np.float64
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        seeds = []
        for network in networks:
            save_model(path, network)
            seeds.append(path.read_bytes())
    return [*seeds, archive_of([member._replace(method=zipfile.ZIP_DEFLATED) for member in members_of(seeds[1])])]


def examine_model(content: bytes, folder: Path) -> InputError | None:
    path = folder / "model.npz"
    path.write_bytes(content)

    def read() -> None:
        if not np.isfinite(load_model(path).params).all():
            raise Violation("it took over parameters that are not finite")

    return examine(read, bytes_for_archive(content))


def bytes_for_archive(content: bytes) -> int:
    """How much memory it may take to read an archive: by what it holds, not by what it claims."""
    held = sum(len(member.content) for member in members_of(content) if member.method in _METHODS)
    return 16 * MEBIBYTE + 10 * max(held, len(content))


# Checkpoints


def _network() -> pc.NetworkHandler:
    return pc.NetworkHandler((pc.Flatten(), pc.Dense(4)), (1, 3, 2))


def _facts() -> dict[str, Any]:
    """Of the training whose checkpoints are read."""
    images, labels = np.zeros((4, 3, 2), np.uint8), np.arange(4)
    dataset = pc.Dataset(images, labels, 4)
    others = {"loss": pc.SoftmaxCrossEntropy(), "optimizer": pc.SGD(), "epochs": 3, "batch_size": 2}
    return facts_of(dataset, dataset, _network(), **others, seed=0, grains=None)


def checkpoint_seeds() -> list[bytes]:
    result = Evaluation(1.5, 0.25, 4)
    of_regression = Evaluation(1.5, None, 4)
    params = _network().params
    checkpoints = [
        Checkpoint(_facts(), {"params": params}, History()),
        Checkpoint(
            _facts(),
            {"params": params, "velocity": np.ones_like(params)},
            History([2.5, 1.0, 0.5], [(2, 1, result), (3, 2, of_regression)], 6, 0.25, lost_ranks=1),
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-000000003.npz"
        seeds = []
        for checkpoint in checkpoints:
            save_checkpoint(path, checkpoint)
            seeds.append(path.read_bytes())
    return seeds


def examine_checkpoint(content: bytes, folder: Path) -> InputError | None:
    """Read it, and start from it the training that it may be of."""
    path = folder / "step-000000003.npz"
    path.write_bytes(content)
    network, facts = _network(), _facts()

    def read() -> None:
        history = start(comm.Serial(), network, facts, load_checkpoint(path), last_sample=12)
        _check_history(history)
        Sampler(4, 2, 0).after(history.samples_seen)
        if not np.isfinite(network.params).all():
            raise Violation("it took over parameters that are not finite")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        return examine(read, bytes_for_archive(content))


def _check_history(history: History) -> None:
    """Raise Violation unless a training can go on from it."""
    counts, numbers = [history.samples_seen, history.lost_ranks], [history.train_seconds, *history.losses]
    for step, epoch, result in history.evaluations:
        counts += [step, epoch, result.samples]
        numbers += [result.loss, 0.0 if result.accuracy is None else result.accuracy]
    well = all(type(count) is int and count >= 0 for count in counts)
    if not well or not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        raise Violation(f"it took over {shortened(repr(history))}")


def mutated_checkpoint(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    changed = mutated_archive(content, rng, mutate)
    return sealed(changed) if rng.random() < 0.85 else changed


def sealed(content: bytes) -> bytes:
    """The checkpoint with the SHA-256 that its arrays and description have; as it is if it cannot be told."""
    members = members_of(content)
    with tempfile.NamedTemporaryFile() as file, contextlib.suppress(Exception):  # whatever a reader may raise
        file.write(content)
        file.flush()
        with zipfile.ZipFile(file.name) as archive:
            description = json.loads(str(read_npy(archive, "description", MEBIBYTE)[()]))
            arrays = {name: read_npy(archive, name, MEBIBYTE) for name in description["arrays"]}
        description.pop("sha256", None)
        text = json.dumps({**description, "sha256": _sha256(description, arrays)})
        return archive_of(
            [
                member._replace(content=npy_of(text)) if member.name == "description.npy" else member
                for member in members
            ]
        )
    return content


# The command line, the environment, and the files of control groups


_VARIABLES = (
    "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "PMI_RANK", "PMIX_RANK", "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_CPUS_ON_NODE", "SLURMD_NODENAME", "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS", "PARALLELCNN_CACHE", "PARALLELCNN_MNIST_MIRRORS", "XDG_CACHE_HOME", "HOME",
)  # fmt: skip

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
                environment[rng.choice(_VARIABLES)] = word
            elif choice < 0.95:
                files[rng.choice(["cgroup", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"])] = word
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
    arguments = [_as_given(word) for word in given] if isinstance(given, list) else []
    environment = {"PARALLELCNN_CACHE": "cache", "HOME": "home", **_environment(variables)}
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
            mock.patch.object(run, "RunFolder", _stop),
            mock.patch.object(evaluation, "evaluate", _stop),
            mock.patch.object(cli, "_doctor", _stop),
            mock.patch.object(by_name, "load_digits", _four_images),
            mock.patch.object(mnist, "_download", _no_network),
        ):
            return examine(command, 256 * MEBIBYTE, forbidden=())
    finally:
        os.chdir(before)


def examine_system(files: dict, variables: dict, folder: Path) -> None:
    """Read what files of control groups and the environment say."""
    groups = _write_groups(files, folder)

    def read() -> None:
        core_quota(groups / "cgroup", groups)
        comm.launched_ranks()
        comm.launched_rank()

    with mock.patch.dict(os.environ, _environment(variables)):
        if examine(read, MEBIBYTE) is not None:
            raise Violation("it refused to start because of what the system says")


def _environment(variables: dict) -> dict[str, str]:
    """Those that this library reads."""
    return {name: _as_given(word) for name, word in variables.items() if name in _VARIABLES}


def _as_given(word: Any) -> str:
    """A word as the system hands it over: bytes without zeros."""
    text = word if isinstance(word, str) else json.dumps(word)
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "surrogatepass")
    return os.fsdecode(encoded.replace(b"\0", b""))


def _write_groups(files: dict, folder: Path) -> Path:
    """The files of control groups, in a folder of their own."""
    groups = folder / "groups"
    groups.mkdir(exist_ok=True)
    for name in ("cgroup", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"):
        place = groups / ("cpu" if "cfs" in name else "") / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(os.fsencode(_as_given(files.get(name, ""))))
    return groups


def _write_what_commands_name(folder: Path) -> None:
    if (folder / "FOLDER").exists():
        return
    (folder / "FOLDER").mkdir()
    for name, content in _GOOD_FOLDER.items():
        (folder / "FOLDER" / name).write_bytes(content)
    (folder / "own.py").write_text(_MODEL_FILE)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "letters.py").write_bytes(b"def f(): return '\xff'\n")
    network = pc.NetworkHandler((pc.Flatten(), pc.Dense(4)), (1, 3, 2))
    for path in (folder / "model.npz", folder / "FOLDER" / "model.npz"):
        save_model(path, network)
    (folder / "step-1.npz").write_bytes(checkpoint_seeds()[1])


def _stop(*_: Any, **__: Any) -> None:
    raise InputError("everything is as it should be")


def _four_images() -> tuple[pc.Dataset, pc.Dataset]:
    return load_idx_folder("FOLDER")


def _no_network(*_: Any) -> None:
    raise mnist._MirrorError("is not asked")


TARGETS = {
    "idx": Target(idx_seeds, examine_idx, mutated_idx),
    "model": Target(model_seeds, examine_model, mutated_archive),
    "checkpoint": Target(checkpoint_seeds, examine_checkpoint, mutated_checkpoint),
    "command": Target(command_seeds, examine_command, mutated_command),
}
