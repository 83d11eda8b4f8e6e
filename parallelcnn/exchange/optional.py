"""Packages that are needed only to exchange models."""

import importlib
from typing import Any

from parallelcnn.errors import InputError

_EXTRAS = {"onnx": "onnx", "onnx.reference": "onnx", "onnxruntime": "onnx", "torch": "torch"}


class NotInstalledError(InputError):
    """A package that is not installed."""


def import_optional(name: str, owner: str) -> Any:
    """Import a package.

    Args:
        owner: what needs it, for the message.

    Raises:
        NotInstalledError: if it is not installed; the message says how to install it.
        InputError: if it is installed but broken, as if built for another numpy.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name in (name, package):
            raise NotInstalledError(f"{owner} needs {name}: pip install 'parallelcnn[{_EXTRAS[name]}]'") from None
        raise InputError(f"{owner} needs {package}, which is installed but cannot be imported: {error}") from error
