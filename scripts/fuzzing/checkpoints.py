"""Checkpoints that are fuzzed, and the training that starts from them."""

import contextlib
import json
import math
import random
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

import parallelcnn as pc
from fuzzing.archives import archive_of, bytes_for_archive, files_of, members_of, mutated_archive, npy_of
from fuzzing.target import Mutate
from fuzzing.watch import MEBIBYTE, Violation, examine, shortened
from parallelcnn import comm
from parallelcnn.data.sampler import Sampler
from parallelcnn.errors import InputError, TrainingWarning
from parallelcnn.files.archive import read_npy
from parallelcnn.training.checkpoint import Checkpoint, _sha256, load_checkpoint, save_checkpoint
from parallelcnn.training.evaluation import Evaluation
from parallelcnn.training.history import History
from parallelcnn.training.preparation import facts_of, start


def small_network() -> pc.NetworkHandler:
    """The network of the training whose checkpoints are read."""
    return pc.NetworkHandler((pc.Flatten(), pc.Dense(4)), (1, 3, 2))


def _facts() -> dict[str, Any]:
    """What distinguishes that training from others."""
    images, labels = np.zeros((4, 3, 2), np.uint8), np.arange(4)
    dataset = pc.Dataset(images, labels, 4)
    others = {"loss": pc.SoftmaxCrossEntropy(), "optimizer": pc.SGD(), "epochs": 3, "batch_size": 2}
    return facts_of(dataset, dataset, small_network(), **others, seed=0, grains=None)


def checkpoint_seeds() -> list[bytes]:
    result = Evaluation(1.5, 0.25, 4)
    of_regression = Evaluation(1.5, None, 4)
    params = small_network().params
    checkpoints = [
        Checkpoint(_facts(), {"params": params}, History()),
        Checkpoint(
            _facts(),
            {"params": params, "velocity": np.ones_like(params)},
            History([2.5, 1.0, 0.5], [(2, 1, result), (3, 2, of_regression)], 6, 0.25, lost_ranks=1),
        ),
    ]
    return files_of(save_checkpoint, "step-000000003.npz", checkpoints)


def examine_checkpoint(content: bytes, folder: Path) -> InputError | None:
    """Read it, and start from it the training that it may be of."""
    path = folder / "step-000000003.npz"
    path.write_bytes(content)
    network, facts = small_network(), _facts()

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
