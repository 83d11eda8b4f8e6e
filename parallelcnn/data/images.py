"""Decode the images of a folder once, in parallel, into one file of the cache. Later starts map it into memory.

The file has an array of images and one of labels for each set. Its name depends on the names, sizes and times of all
images, and on how they are resized: if one of them changes, another file is made.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import sys
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from parallelcnn.data.cache import KEPT_BYTES, KEPT_DAYS, cache_folder, delete_unused, mark_as_used
from parallelcnn.data.dataset import Array, Dataset
from parallelcnn.data.readers.decoding import ImageOptions, Look, decode, look
from parallelcnn.data.readers.image_folder import ImageFolder, find_images
from parallelcnn.data.sampler import shard
from parallelcnn.data.sets import DataSets
from parallelcnn.errors import CheckpointError, DataError
from parallelcnn.files.rows import FileRows
from parallelcnn.files.safetensors import Kind, create_safetensors, open_safetensors
from parallelcnn.resources import memory_limit, usable_cores
from parallelcnn.status_line import make_room
from parallelcnn.wording import in_units, plural

T = TypeVar("T")

_VERSION = 1  # of the decoding: other pixels need another file
_LOOKED_AT = 500  # images whose headers decide on the size
_LARGEST_KEPT = 128  # pixels: images that all have one size up to this keep it
_OTHERS_SIZE = 64  # pixels of a side: enough to tell things apart, and small enough to train on a CPU
_IN_A_ROUND = 128  # images that a thread decodes before ranks meet: about a second of photos
_NAMED = 3  # broken images that a message names


class Ranks(Protocol):
    """The ranks that decode together."""

    rank: int
    node: list[int]
    """The ranks on this rank's node."""

    def together(self, work: Callable[[], T]) -> list[T]:
        """Call `work` on every rank; returns all results. An error on one rank is raised on all."""


class Alone:
    """A single process as `Ranks`."""

    rank = 0

    def __init__(self) -> None:
        self.node = [0]

    def together(self, work: Callable[[], T]) -> list[T]:
        return [work()]


_ALONE = Alone()


@dataclass(frozen=True)
class DecodedImages:
    """The images of a folder in one shape, and the file that holds them, or will hold them.

    Attributes:
        found: the images.
        options: how they are decoded.
        file: in the cache.
        shape: (C, H, W) of an image; None: in the file.
        why: how the shape was chosen, in words.
        broken: why images were left out, a message for each.
    """

    found: ImageFolder
    options: ImageOptions
    file: Path
    shape: tuple[int, int, int] | None = None
    why: str = ""
    broken: tuple[str, ...] = ()

    def sets(self) -> DataSets | None:
        """The data sets, mapped from the file; None if it is missing or damaged."""
        try:
            arrays, about = open_safetensors(self.file, locked=True)
            mark_as_used(self.file)
            class_names = tuple(json.loads(about["class_names"]))
            made = {
                name: Dataset(
                    _in_memory_if_it_fits(arrays[f"{name}_images"]),
                    arrays[f"{name}_labels"][:],
                    len(class_names),
                    str(self.found.folder),
                    role="val" if name == "validation" else "test",
                    class_names=class_names,
                    resize=self.options.resize,
                )
                for name in self.found.sets
            }
            files = {name: arrays[f"{name}_files"][:] for name in made}
            return DataSets(found=about["found"], broken=tuple(json.loads(about["broken"])), files=files, **made)
        except (CheckpointError, OSError, ValueError, KeyError):
            return None

    def create(self, file: Path) -> None:
        """Create the file, with labels, and images that are still black."""
        assert self.shape is not None
        kinds = {}
        for name, one in self.found.sets.items():
            kinds[f"{name}_images"] = Kind(np.uint8, (len(one.files), *self.shape))
            kinds[f"{name}_labels"] = Kind(np.int64, (len(one.files),))
            kinds[f"{name}_files"] = Kind(np.uint8, (len(_joined(one.files)),))
        about = {
            "class_names": json.dumps(self.found.class_names),
            "found": f"{self.found}; {self.why}",
            "broken": json.dumps(self.broken),
        }
        _delete_unused(file.parent, len(self.found.files) * math.prod(self.shape))
        create_safetensors(file, kinds, about)
        arrays, _ = open_safetensors(file, writable=True)
        for name, one in self.found.sets.items():
            arrays[f"{name}_labels"][:] = one.labels
            arrays[f"{name}_files"][:] = np.frombuffer(_joined(one.files), np.uint8)

    def decode(self, numbers: Array, arrays: dict[str, FileRows]) -> dict[int, str]:
        """Decode images into arrays of the file.

        Args:
            numbers: which of `found.files`.

        Returns:
            why an image is broken, by its number.
        """
        assert self.shape is not None
        broken = {}
        starts = np.cumsum([0, *(len(one.files) for one in self.found.sets.values())])
        names = [f"{name}_images" for name in self.found.sets]
        for number in numbers:
            of_set = int(np.searchsorted(starts, number, "right")) - 1
            try:
                arrays[names[of_set]][int(number - starts[of_set])] = decode(
                    self.found.files[number], self.shape, self.options.resize
                )
            except DataError as error:
                broken[number] = str(error)
        return broken

    def without(self, broken: dict[int, str]) -> "DecodedImages":
        """The same without images that are broken; DataError if no training image of a class, or no other image, is
        left.
        """
        start, sets = 0, {}
        for name, one in self.found.sets.items():
            kept = [i for i in range(len(one.files)) if start + i not in broken]
            start += len(one.files)
            sets[name] = replace(one, files=[one.files[i] for i in kept], labels=[one.labels[i] for i in kept])
        lost = set(self.found.sets["train"].labels) - set(sets["train"].labels)
        if lost:
            name = self.found.class_names[min(lost)]
            raise DataError(
                f"{self.found.folder}: none of the training images of the class {name} can be decoded"
            ).together()
        for name, one in sets.items():
            if not one.files:
                raise DataError(f"{self.found.folder}: none of the {name} images can be decoded").together()
        why = f"{self.why}; {plural(len(broken), 'broken image')} left out"
        messages = tuple(broken[number] for number in sorted(broken))
        return replace(self, found=replace(self.found, sets=sets), why=why, broken=messages)


def plan_images(folder: Path, options: ImageOptions) -> DecodedImages:
    """Find the images of a folder, and choose their shape unless they have been decoded before.

    Raises:
        DataError: see `find_images`; if none of the images that decide on the size can be opened.
    """
    found = find_images(folder)
    instead = "or convert the images to an .npz file"
    plan = DecodedImages(found, options, cache_folder("images", instead) / f"{_key(found, options)}.safetensors")
    return plan if plan.file.exists() and plan.sets() is not None else _with_shape(plan)


def load_images(plan: DecodedImages, ranks: Ranks = _ALONE, advance: Callable[[int], object] = id) -> DataSets:
    """The data sets of a plan. If a rank does not find the file, it is made: the ranks decode the images together.

    Collective: every rank of `ranks` must call it, with the same plan.

    Args:
        ranks: by default this process alone, with a thread for each core.
        advance: called with the number of images that are done so far.

    Raises:
        DataError: if an image is broken, unless it may be left out; or if the file cannot be written.
    """
    # First into one file, for all ranks that see it. Nodes that do not share this folder make their own afterwards.
    for lead in (0, ranks.node[0]):
        sets = plan.sets()
        wanted = sets is None
        if not any(ranks.together(lambda wanted=wanted: wanted)):  # type: ignore[misc]
            break
        if plan.shape is None:  # this node, or rank 0, had a file when the plan was made
            first = ranks.together(lambda plan=plan: _with_shape(plan) if ranks.rank == 0 else plan)[0]  # type: ignore[misc]
            plan = replace(plan, shape=first.shape, why=first.why)
        broken = _decode(plan, ranks, lead, advance, wanted=wanted)
        if broken and not plan.options.skip_broken:
            raise DataError(_described(broken)).together()
        if broken:
            plan = plan.without(broken)
            _decode(plan, ranks, lead, advance, wanted=wanted)
    sets = plan.sets()

    def check() -> None:
        if sets is None:
            raise DataError(f"{plan.file}: the decoded images cannot be read; PARALLELCNN_CACHE names another folder")

    ranks.together(check)
    assert sets is not None
    return sets


def _decode(
    plan: DecodedImages, ranks: Ranks, lead: int, advance: Callable[[int], object], *, wanted: bool
) -> dict[int, str]:
    """Make the plan's file. The ranks that see the file of their lead share the images.

    Args:
        lead: the rank that creates the file for this rank.
        wanted: whether this rank lacks the file.

    Returns:
        why an image is broken, by its number. If there is one, no file is made.
    """
    temporary = plan.file.with_name(f".{plan.file.name}.{secrets.token_urlsafe(6)}.unfinished")
    leads = ranks.rank == lead and wanted

    def create() -> tuple[Path, tuple[int, int]] | None:
        if not leads:
            return None
        with _refusing_what_fails(plan.file):
            plan.file.parent.mkdir(parents=True, exist_ok=True)
            plan.create(temporary)
            return temporary, _identity(temporary)

    def finish() -> None:
        if leads:
            with _refusing_what_fails(plan.file):
                _flush(temporary)
                os.replace(temporary, plan.file)

    try:
        made = ranks.together(create)[lead]
        takes_part = wanted and made is not None and _is_there(*made)
        everyone = ranks.together(lambda: (takes_part, lead, usable_cores()))
        partners = [rank for rank, (takes, of_lead, _) in enumerate(everyone) if takes and of_lead == lead]
        cores = frozenset().union(*(everyone[rank][2] for rank in ranks.node))
        threads = max(1, len(cores) // len(ranks.node))
        numbers = np.empty(0, np.int64)
        if takes_part:
            assert made is not None
            arrays, _ = open_safetensors(made[0], writable=True, locked=True)
            numbers = shard(np.arange(len(plan.found.files)), partners.index(ranks.rank), len(partners))
        size = _IN_A_ROUND * threads
        pieces = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        rounds, done = max(ranks.together(lambda: len(pieces))), 0
        broken: dict[int, str] = {}
        with ThreadPoolExecutor(threads) as pool:

            def decode(piece: Array) -> dict[int, str]:
                parts = pool.map(lambda i: plan.decode(shard(piece, i, threads), arrays), range(threads))
                return dict(ChainMap(*parts))

            def work(number: int) -> tuple[dict[int, str], int]:
                piece = pieces[number] if number < len(pieces) else numbers[:0]
                return decode(piece) if len(piece) else {}, len(piece)

            for number in range(rounds):
                for found, count in ranks.together(partial(work, number)):
                    broken |= found
                    done += count
                advance(done)
        if not broken:
            ranks.together(finish)
        return broken
    finally:
        if leads:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def _refusing_what_fails(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{file.parent}: the decoded images cannot be written: {error.strerror}; PARALLELCNN_CACHE names another "
            f"folder"
        ) from None


def _delete_unused(folder: Path, needed: int) -> None:
    """Delete decoded images that are no longer used, and print how many."""
    deleted = delete_unused(folder, needed)
    if deleted:
        make_room()
        files = plural(len(deleted), "file")
        print(
            f"cache      deleted {files} of decoded images ({in_units(sum(deleted))}) in {folder}: not used for "
            f"{KEPT_DAYS} days, or the least recently used beyond {in_units(KEPT_BYTES)}",
            file=sys.stderr,
        )


def _flush(file: Path) -> None:
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


def _identity(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_ino, status.st_size


def _is_there(file: Path, identity: tuple[int, int]) -> bool:
    """Whether this rank sees the file that another one has made: on another node there may be none, or another."""
    try:
        return _identity(file) == identity and os.access(file, os.W_OK)
    except OSError:
        return False


def _with_shape(plan: DecodedImages) -> DecodedImages:
    """The plan with a shape: that of the options, or one that suits the images."""
    files = plan.found.files
    looks = try_to_look(files[:: -(-len(files) // _LOOKED_AT)])
    seen = [one for one in looks if isinstance(one, Look)]
    if not seen:
        raise next(one for one in looks if isinstance(one, DataError))
    sizes = Counter((one.rows, one.columns) for one in seen)
    smallest, largest = min(sizes), max(sizes)
    given: Any = plan.options.image_size
    if given is not None:
        H, W = given
    elif len(sizes) == 1 and max(largest) <= _LARGEST_KEPT:
        H, W = largest
    else:
        H = W = _OTHERS_SIZE
    color = plan.options.color or ("gray" if all(one.is_gray for one in seen) else "rgb")
    of_files = _times(*largest) if smallest == largest else f"{_times(*smallest)} to {_times(*largest)}"
    how = "" if smallest == largest == (H, W) else f", resized to {_times(H, W)} ({plan.options.resize})"
    return replace(plan, shape=(1 if color == "gray" else 3, H, W), why=f"{of_files} pixels{how}, {color}")


def _times(rows: int, columns: int) -> str:
    return f"{rows} x {columns}"


def try_to_look(files: Iterable[str]) -> list[Look | DataError]:
    """What the headers of images say, or why they cannot be read."""

    def try_one(file: str) -> Look | DataError:
        try:
            return look(file)
        except DataError as error:
            return error

    with ThreadPoolExecutor(len(usable_cores())) as pool:
        return list(pool.map(try_one, files))


def _in_memory_if_it_fits(rows: FileRows) -> Any:
    """The images mapped into memory, unless they need more than half of it: then they are read when they are used."""
    return rows.mapped() if rows.nbytes <= memory_limit()[0] / 2 else rows


def file_names(files: Array) -> list[str]:
    """The names of files, from one of the arrays `DataSets.files`."""
    return [os.fsdecode(name) for name in files.tobytes().split(b"\0")]


def _joined(files: Iterable[str]) -> bytes:
    return b"\0".join(map(os.fsencode, files))


def _described(broken: dict[int, str]) -> str:
    """A message about broken images."""
    first = "; ".join(broken[number] for number in sorted(broken)[:_NAMED])
    more = f"; and {len(broken) - _NAMED:,} more" if len(broken) > _NAMED else ""
    return f"{first}{more}. Remove what is broken, or leave it out: --skip-broken (skip_broken=True)"


def _key(found: ImageFolder, options: ImageOptions) -> str:
    """A name for the file: a digest of all that decides on its content."""
    digest = hashlib.sha256(repr((_VERSION, found.class_names, options)).encode())
    for name, one in found.sets.items():
        digest.update(f"{name} {len(one.files)}".encode() + _joined(one.files))
    try:
        facts = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, found.files)]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    digest.update(np.array(facts, np.int64).tobytes())
    return digest.hexdigest()[:32]
