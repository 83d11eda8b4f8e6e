"""Packages that are needed only to exchange models."""

import importlib
from typing import Any

from parallelcnn.errors import InputError

_EXTRAS = {"onnx": "onnx", "onnx.reference": "onnx", "onnxruntime": "onnx", "torch": "torch"}


def import_optional(name: str, owner: str) -> Any:
    """Import a package.

    Args:
        owner: what needs it, for the message.

    Raises:
        InputError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{owner} needs {name}: pip install 'parallelcnn[{_EXTRAS[name]}]'") from None
