"""The folder for downloads and decoded images."""

import os
from pathlib import Path

from parallelcnn.errors import DataError


def cache_folder(part: str, instead: str) -> Path:
    """A folder in the cache: in the environment variable PARALLELCNN_CACHE, otherwise in XDG_CACHE_HOME/parallelcnn or
    ~/.cache/parallelcnn. It may not exist yet.

    Args:
        part: its name.
        instead: what else the user can do, for the message.

    Raises:
        DataError: if no home folder is known.
    """
    if cache := os.environ.get("PARALLELCNN_CACHE"):
        return Path(cache).expanduser() / part
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # the XDG specification says to ignore relative paths
        return Path(cache) / "parallelcnn" / part
    try:
        return Path.home() / ".cache" / "parallelcnn" / part
    except RuntimeError:
        raise DataError(
            f"no home folder is known for the cache: set PARALLELCNN_CACHE to a folder, {instead}"
        ) from None
