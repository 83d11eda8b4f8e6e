"""Load MNIST from a folder of the user or from the cache. Missing files are downloaded into the cache.

On a cluster only one rank of each node calls `load_mnist`, and shares the arrays with the others.
"""

import hashlib
import os
import secrets
import sys
import time
import zlib
from collections.abc import Generator, Sequence
from contextlib import closing
from glob import iglob
from pathlib import Path

from parallelcnn.arguments import as_path
from parallelcnn.data.cache import cache_folder
from parallelcnn.data.dataset import Dataset
from parallelcnn.data.readers.idx import PathLike, open_content
from parallelcnn.data.readers.idx_folder import load_idx_folder
from parallelcnn.errors import DataError, shown

# Copies by PyTorch, by the Common Visual Data Foundation and by Amazon: MNIST's own page has refused downloads for
# years.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://sagemaker-sample-files.s3.amazonaws.com/datasets/image/MNIST",
)

# MD5 of the uncompressed content, since mirrors compress it differently.
CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}

READ_TIMEOUT = 10.0  # if a server sends nothing [s]
FILE_TIMEOUT = 300.0  # for one file from a slow server [s]

_CLASSES = 10
_CHUNK_BYTES = 1 << 18
# Above the uncompressed size of the largest file: a server that sends more sends a wrong file.
_MAX_FILE_BYTES = 64 << 20

_WAY_OUT = "name a folder that holds the four files (--data-dir DIR), or train on --data digits"
_MISSING = "is missing"


class _MirrorError(Exception):
    """A mirror did not deliver a file. The message contains no control characters that the mirror may have sent."""

    def __str__(self) -> str:
        return shown(super().__str__())


def load_mnist(
    data_dir: PathLike | None = None,
    *,
    mirrors: Sequence[str] | None = None,
    cache_dir: PathLike | None = None,
    progress: bool | None = None,
) -> tuple[Dataset, Dataset]:
    """Load MNIST. If it is not in the cache, download it into the cache.

    Args:
        data_dir: folder with the four files, in itself or in its `mnist` or `MNIST/raw`. With it, nothing is
            downloaded, and variants of MNIST are accepted as well.
        mirrors: URLs of folders to download from, tried in turn; None: the environment variable
            PARALLELCNN_MNIST_MIRRORS (separated by spaces), otherwise `MIRRORS`.
        cache_dir: folder for downloads; None: the folder `mnist` in the cache, which is named by the environment
            variable PARALLELCNN_CACHE, and otherwise XDG_CACHE_HOME/parallelcnn or ~/.cache/parallelcnn.
        progress: whether to show progress bars on stderr during downloads; None: on a terminal only. Unless it is
            False, a line says what is downloaded, and why a mirror failed.

    Returns:
        (train, test): 60,000 and 10,000 uint8 images (28, 28) of the digits, ten classes.

    Raises:
        DataError: if the files are missing or damaged and no mirror delivers them.
    """
    if data_dir is not None:
        folder = as_path("data_dir", data_dir)
        places = (folder, folder / "mnist", folder / "MNIST" / "raw")  # other programs use the last two
        folder = next((place for place in places if any(iglob("*idx*ubyte*", root_dir=place))), folder)
        return load_idx_folder(folder, "mnist", classes=_CLASSES)
    folder = as_path("cache_dir", cache_dir) if cache_dir is not None else cache_folder("mnist", _WAY_OUT)
    try:
        return load_idx_folder(folder, "mnist", classes=_CLASSES)
    except DataError:
        _complete(folder, mirrors or os.environ.get("PARALLELCNN_MNIST_MIRRORS", "").split() or MIRRORS, progress)
    return load_idx_folder(folder, "mnist", classes=_CLASSES)


def _complete(folder: Path, mirrors: Sequence[str], progress: bool | None) -> None:
    """Download the files that are missing or damaged in the cache."""
    failures: dict[str, str] = {}
    announced = set()
    for name, checksum in CHECKSUMS.items():
        path = folder / name
        damage = _damage(path, checksum)
        if not damage:
            continue
        if damage != _MISSING:
            _say(f"{path} {damage}; downloading it again", progress)
        for mirror in mirrors:
            if mirror in failures:  # do not try it again
                continue
            if mirror not in announced:
                _say(f"downloading MNIST (11 MB) from {mirror} to {folder}", progress)
                announced.add(mirror)
            url = f"{mirror.rstrip('/')}/{name}"
            try:
                _download(url, path, checksum, progress)
                break
            except _MirrorError as error:
                failures[mirror] = f"{url}: {error}"
                _say(failures[mirror], progress)
            except OSError as error:
                raise DataError(
                    f"{folder}: MNIST cannot be kept there: {error.strerror or error}: set "
                    f"PARALLELCNN_CACHE to a folder that can be written, {_WAY_OUT}"
                ) from error
        else:
            raise DataError(
                f"MNIST: {path} {damage}, and no mirror sends it ({'; '.join(failures.values())}): {_WAY_OUT}"
            )


def _damage(path: Path, checksum: str) -> str:
    """The damage of a file, as the end of a sentence about it; "" if there is none."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open_content(path) as content:
            held = 0
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
                held += len(chunk)
                if held > _MAX_FILE_BYTES:
                    return f"is not MNIST's: it holds more than {_MAX_FILE_BYTES:,} bytes"
    except FileNotFoundError:
        return _MISSING
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    except (OSError, EOFError, zlib.error) as error:
        return f"is damaged: {error}"
    if digest.hexdigest() == checksum:
        return ""
    return f"is not MNIST's: the MD5 of its content must be {checksum}, got {digest.hexdigest()}"


def _download(url: str, path: Path, checksum: str, progress: bool | None) -> None:
    """Download one file. It gets its name only when it is complete and checked.

    Raises:
        _MirrorError: if the mirror does not deliver the file.
        OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each process writes to its own temporary file. The last process replaces the file by an equal one.
    part = path.with_name(f"{secrets.token_hex(8)}.part.{path.name}")
    try:
        with open(part, "xb") as file, closing(_receive(url, path.name, progress)) as chunks:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if damage := _damage(part, checksum):
            raise _MirrorError(f"sends a file that {damage}")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _receive(url: str, name: str, progress: bool | None) -> Generator[bytes, None, None]:
    """The bytes at a URL, in chunks.

    Raises:
        _MirrorError: if there are too few or too many bytes, or they arrive too slowly.
    """
    # Imported here because the import takes a tenth of a second, and only downloads need it.
    import http.client
    import urllib.error
    import urllib.request

    from tqdm import tqdm

    deadline = time.monotonic() + FILE_TIMEOUT
    received = 0
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    try:
        with (
            urllib.request.urlopen(url, timeout=READ_TIMEOUT) as response,
            tqdm(desc=name, unit="B", unit_scale=True, disable=hidden) as bar,
        ):
            length = response.headers.get("Content-Length", "")
            bar.total = expected = int(length) if length.isdecimal() else None
            # read1 returns the bytes that have arrived; read would wait for a whole chunk, however slow.
            while chunk := response.read1(_CHUNK_BYTES):
                received += len(chunk)
                bar.update(len(chunk))
                if received > _MAX_FILE_BYTES:
                    raise _MirrorError(f"sends more than {_MAX_FILE_BYTES:,} bytes")
                if time.monotonic() > deadline:
                    raise _MirrorError(f"is too slow: {received:,} bytes in {FILE_TIMEOUT:g} s")
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"answers with HTTP status {error.code}") from error
    except urllib.error.URLError as error:
        raise _MirrorError(f"cannot be reached: {error.reason}") from error
    except TimeoutError as error:
        raise _MirrorError(f"sends nothing for {READ_TIMEOUT:g} s") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _MirrorError(f"fails: {error or type(error).__name__}") from error
    if expected is not None and received != expected:
        raise _MirrorError(f"sends {received:,} of {expected:,} bytes")


def _say(line: str, progress: bool | None) -> None:
    if progress is not False:
        print(f"parallelcnn: {shown(line)}", file=sys.stderr, flush=True)
