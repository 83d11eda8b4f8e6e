"""Train convolutional networks on CPUs, data-parallel over MPI ranks.

    >>> import parallelcnn as pc
    >>> train_set, test_set = pc.load_data("digits")
    >>> network = pc.NetworkHandler(pc.paper(), train_set.input_shape, seed=0)
    >>> history = pc.train(network, train_set, test_set, pc.SGD(0.1), epochs=3, batch_size=100)

A name is imported from its module when it is first used, so that `import parallelcnn` loads neither numba nor MPI.
"""

import typing as _typing
from importlib import import_module as _import_module

from parallelcnn._version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from parallelcnn.activations import ActivationFunction as ActivationFunction
    from parallelcnn.autodiff.gradient_check import gradient_check as gradient_check
    from parallelcnn.comm import Serial as Serial
    from parallelcnn.data import Dataset as Dataset
    from parallelcnn.data import load_data as load_data
    from parallelcnn.data import load_digits as load_digits
    from parallelcnn.data import load_idx_folder as load_idx_folder
    from parallelcnn.data import load_mnist as load_mnist
    from parallelcnn.errors import CheckpointError as CheckpointError
    from parallelcnn.errors import DataError as DataError
    from parallelcnn.errors import DivergenceError as DivergenceError
    from parallelcnn.errors import GradientError as GradientError
    from parallelcnn.errors import InputError as InputError
    from parallelcnn.errors import LaunchError as LaunchError
    from parallelcnn.errors import ParallelCNNError as ParallelCNNError
    from parallelcnn.errors import ReplicaMismatchError as ReplicaMismatchError
    from parallelcnn.errors import ShapeError as ShapeError
    from parallelcnn.errors import TrainingWarning as TrainingWarning
    from parallelcnn.files.model import load_model as load_model
    from parallelcnn.files.model import save_model as save_model
    from parallelcnn.layers import Activation as Activation
    from parallelcnn.layers import Buffer as Buffer
    from parallelcnn.layers import Conv2D as Conv2D
    from parallelcnn.layers import Dense as Dense
    from parallelcnn.layers import Flatten as Flatten
    from parallelcnn.layers import Layer as Layer
    from parallelcnn.layers import MaxPool2D as MaxPool2D
    from parallelcnn.layers import Parameter as Parameter
    from parallelcnn.layers import PReLU as PReLU
    from parallelcnn.layers import Residual as Residual
    from parallelcnn.losses import MeanSquaredError as MeanSquaredError
    from parallelcnn.losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
    from parallelcnn.metrics import Accuracy as Accuracy
    from parallelcnn.metrics import MeanAbsoluteError as MeanAbsoluteError
    from parallelcnn.metrics import Metric as Metric
    from parallelcnn.models import lenet5 as lenet5
    from parallelcnn.models import paper as paper
    from parallelcnn.network import NetworkHandler as NetworkHandler
    from parallelcnn.optimizers import SGD as SGD
    from parallelcnn.optimizers import Optimizer as Optimizer
    from parallelcnn.pointwise_loss import PointwiseLoss as PointwiseLoss
    from parallelcnn.profiling import Profiler as Profiler
    from parallelcnn.resilience.world import world as world
    from parallelcnn.schedules import Constant as Constant
    from parallelcnn.schedules import Cosine as Cosine
    from parallelcnn.schedules import OneCycle as OneCycle
    from parallelcnn.schedules import Schedule as Schedule
    from parallelcnn.trainer import evaluate as evaluate
    from parallelcnn.trainer import train as train
    from parallelcnn.training.callbacks import Callback as Callback
    from parallelcnn.training.callbacks import EarlyStopping as EarlyStopping
    from parallelcnn.training.checkpoint import Checkpoint as Checkpoint
    from parallelcnn.training.checkpoint import CheckpointFolder as CheckpointFolder
    from parallelcnn.training.checkpoint import load_checkpoint as load_checkpoint
    from parallelcnn.training.evaluation import Evaluation as Evaluation
    from parallelcnn.training.history import History as History

# The same names for the interpreter; a test compares the two lists.
_MODULES = {
    "activations": ["ActivationFunction"],
    "files.model": ["load_model", "save_model"],
    "training.callbacks": ["Callback", "EarlyStopping"],
    "training.checkpoint": ["Checkpoint", "CheckpointFolder", "load_checkpoint"],
    "comm": ["Serial"],
    "resilience.world": ["world"],
    "data": ["Dataset", "load_data", "load_digits", "load_idx_folder", "load_mnist"],
    "errors": [
        "CheckpointError",
        "DataError",
        "DivergenceError",
        "GradientError",
        "InputError",
        "LaunchError",
        "ParallelCNNError",
        "ReplicaMismatchError",
        "ShapeError",
        "TrainingWarning",
    ],
    "training.evaluation": ["Evaluation"],
    "autodiff.gradient_check": ["gradient_check"],
    "training.history": ["History"],
    "layers": [
        "Activation",
        "Buffer",
        "Conv2D",
        "Dense",
        "Flatten",
        "Layer",
        "MaxPool2D",
        "Parameter",
        "PReLU",
        "Residual",
    ],
    "losses": ["MeanSquaredError", "SoftmaxCrossEntropy"],
    "models": ["lenet5", "paper"],
    "network": ["NetworkHandler"],
    "metrics": ["Accuracy", "MeanAbsoluteError", "Metric"],
    "optimizers": ["SGD", "Optimizer"],
    "pointwise_loss": ["PointwiseLoss"],
    "profiling": ["Profiler"],
    "schedules": ["Constant", "Cosine", "OneCycle", "Schedule"],
    "trainer": ["evaluate", "train"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_HOME]


if not _typing.TYPE_CHECKING:  # a type checker would take every name, also one that does not exist

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'parallelcnn' has no attribute {name!r}")
        value = getattr(_import_module(f"parallelcnn.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
