"""Model files that are fuzzed."""

import zipfile
from pathlib import Path

import numpy as np

import parallelcnn as pc
from fuzzing.archives import archive_of, bytes_for_archive, files_of, members_of
from fuzzing.watch import Violation, examine
from parallelcnn.errors import InputError
from parallelcnn.files.model import load_model, save_model


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
    seeds = files_of(save_model, "model.npz", networks)
    return [*seeds, archive_of([member._replace(method=zipfile.ZIP_DEFLATED) for member in members_of(seeds[1])])]


def examine_model(content: bytes, folder: Path) -> InputError | None:
    path = folder / "model.npz"
    path.write_bytes(content)

    def read() -> None:
        if not np.isfinite(load_model(path).params).all():
            raise Violation("it took over parameters that are not finite")

    return examine(read, bytes_for_archive(content))
