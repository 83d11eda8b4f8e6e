"""Find the network that --model names: one known here, or one that a function in a file of the user's returns."""

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from parallelcnn.errors import InputError, nearest_name
from parallelcnn.layers import Layer
from parallelcnn.models import MODELS


def find_model(model: str, classes: int | None, loss: str = "softmax-cross-entropy") -> tuple[Layer, ...]:
    """The layers of a model.

    Args:
        model: a name in `MODELS`, or "FILE.py:FUNCTION"; FUNCTION() or FUNCTION(classes) returns the layers.
        classes: of the data set; None for regression.
        loss: the name of the loss. With binary cross-entropy a named network has one output for two classes.

    Raises:
        InputError: if there is no such model, or the function raises or returns something else.
    """
    if model in MODELS:
        binary = loss == "binary-cross-entropy" and classes == 2
        return MODELS[model](1 if binary else classes or 1)
    file, colon, name = model.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise InputError(f"no model {model!r}: {nearest_name(model, list(MODELS))}, or FILE.py:FUNCTION")
    path = Path(file)
    function = _find_function(path, name)
    try:
        layers = _call(function, classes)
        if not isinstance(layers, Iterable) or isinstance(layers, str):
            raise InputError(f"the function must return the layers, a tuple, got {layers!r}")
        layers = tuple(layers)
        for position, layer in enumerate(layers, start=1):  # here, because to show what it is may fail
            if not isinstance(layer, Layer):
                raise InputError(f"layer {position} of the network must be a Layer, got {layer!r}")
        return layers
    except InputError as error:
        raise InputError(f"{model}: {error}{_line_of(error, path)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{model} raised {_described(error, path)}") from error


def choose_model(input_shape: tuple[int, ...]) -> str:
    """The named network for images of this shape when the user has named none.

    Raises:
        InputError: if the samples are not images.
    """
    if len(input_shape) != 3:
        raise InputError(
            f"the samples are no images, but of shape {input_shape}: name a network for them, --model FILE.py:FUNCTION"
        )
    channels, *sides = input_shape
    if channels == 1 and min(sides) >= 10 and max(sides) <= 32:
        return "paper"
    return "resnet8" if max(sides) <= 48 else "mobilenet-small"


def _find_function(file: Path, name: str) -> Callable[..., Any]:
    if not os.path.isfile(file):  # Path.is_file raises for a name that is too long
        raise InputError(f"no file {file}, named by --model {file}:{name}")
    folder = str(file.resolve().parent)
    loader = _LoaderThatWritesNothing(file.stem, str(file))
    spec = importlib.util.spec_from_file_location(file.stem, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Layers defined in the file are dataclasses, which look their module up by name; its neighbours can be imported.
    sys.modules.setdefault(file.stem, module)
    sys.path.append(folder)
    loaders = ((ExtensionFileLoader, EXTENSION_SUFFIXES), (_LoaderThatWritesNothing, SOURCE_SUFFIXES))
    sys.path_importer_cache[folder] = FileFinder(folder, *loaders)
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{file} raised {_described(error, file)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise InputError(f"{file} has no function {name!r}: {nearest_name(name, known)}")
    return function


class _LoaderThatWritesNothing(SourceFileLoader):
    """Loads a module, and puts no compiled file beside it: results go to --out."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        return


def _call(function: Callable[..., Any], classes: int | None) -> Any:
    """Call a model function. It gets the number of classes if it takes `classes`, or exactly one required argument."""
    parameters = inspect.signature(function).parameters
    if "classes" in parameters:
        return function(classes=classes)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters.values() if p.default is p.empty and p.kind in positional]
    return function(classes) if len(required) == 1 else function()


def _described(error: BaseException, file: Path) -> str:
    """An exception of the user's code in one line, with the line of their file that it came from."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())}{_line_of(error, file)}"


def _line_of(error: BaseException, file: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return f" (line {lines[-1]})" if lines else ""
