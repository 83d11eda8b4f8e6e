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
    from parallelcnn.data import read_images as read_images
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
    from parallelcnn.estimators import CNNClassifier as CNNClassifier
    from parallelcnn.estimators import CNNRegressor as CNNRegressor
    from parallelcnn.exchange.onnx_export import export_onnx as export_onnx
    from parallelcnn.exchange.onnx_import import import_onnx as import_onnx
    from parallelcnn.exchange.parameter_files import load_safetensors as load_safetensors
    from parallelcnn.exchange.parameter_files import read_parameters as read_parameters
    from parallelcnn.exchange.parameter_files import save_safetensors as save_safetensors
    from parallelcnn.exchange.parameter_files import save_state_dict as save_state_dict
    from parallelcnn.exchange.torch_code import torch_code as torch_code
    from parallelcnn.files.model import load_model as load_model
    from parallelcnn.files.model import save_model as save_model
    from parallelcnn.folding import folded as folded
    from parallelcnn.layers import Activation as Activation
    from parallelcnn.layers import AvgPool2D as AvgPool2D
    from parallelcnn.layers import BatchNorm as BatchNorm
    from parallelcnn.layers import Buffer as Buffer
    from parallelcnn.layers import Concat as Concat
    from parallelcnn.layers import Conv2D as Conv2D
    from parallelcnn.layers import Cutout as Cutout
    from parallelcnn.layers import Dense as Dense
    from parallelcnn.layers import DepthwiseConv2D as DepthwiseConv2D
    from parallelcnn.layers import Dropout as Dropout
    from parallelcnn.layers import Flatten as Flatten
    from parallelcnn.layers import Frozen as Frozen
    from parallelcnn.layers import GlobalAvgPool2D as GlobalAvgPool2D
    from parallelcnn.layers import GlobalMaxPool2D as GlobalMaxPool2D
    from parallelcnn.layers import GroupNorm as GroupNorm
    from parallelcnn.layers import Layer as Layer
    from parallelcnn.layers import LayerNorm as LayerNorm
    from parallelcnn.layers import MaxPool2D as MaxPool2D
    from parallelcnn.layers import MixUp as MixUp
    from parallelcnn.layers import Normalize as Normalize
    from parallelcnn.layers import Parameter as Parameter
    from parallelcnn.layers import PReLU as PReLU
    from parallelcnn.layers import RandomBrightness as RandomBrightness
    from parallelcnn.layers import RandomContrast as RandomContrast
    from parallelcnn.layers import RandomCrop as RandomCrop
    from parallelcnn.layers import RandomFlip as RandomFlip
    from parallelcnn.layers import RandomRotation as RandomRotation
    from parallelcnn.layers import RandomZoom as RandomZoom
    from parallelcnn.layers import Recompute as Recompute
    from parallelcnn.layers import Reshape as Reshape
    from parallelcnn.layers import Residual as Residual
    from parallelcnn.layers import Sequential as Sequential
    from parallelcnn.layers import SpatialDropout as SpatialDropout
    from parallelcnn.layers import Upsample2D as Upsample2D
    from parallelcnn.layers import ZeroPad2D as ZeroPad2D
    from parallelcnn.layers import freeze as freeze
    from parallelcnn.layers import layer as layer
    from parallelcnn.losses import AbsoluteError as AbsoluteError
    from parallelcnn.losses import BinaryCrossEntropy as BinaryCrossEntropy
    from parallelcnn.losses import HuberLoss as HuberLoss
    from parallelcnn.losses import MeanSquaredError as MeanSquaredError
    from parallelcnn.losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
    from parallelcnn.metrics import F1 as F1
    from parallelcnn.metrics import Accuracy as Accuracy
    from parallelcnn.metrics import BinaryAccuracy as BinaryAccuracy
    from parallelcnn.metrics import ClassScore as ClassScore
    from parallelcnn.metrics import ConfusionMatrix as ConfusionMatrix
    from parallelcnn.metrics import MeanAbsoluteError as MeanAbsoluteError
    from parallelcnn.metrics import Metric as Metric
    from parallelcnn.metrics import Precision as Precision
    from parallelcnn.metrics import Recall as Recall
    from parallelcnn.metrics import TopK as TopK
    from parallelcnn.models import lenet5 as lenet5
    from parallelcnn.models import mobilenet_small as mobilenet_small
    from parallelcnn.models import paper as paper
    from parallelcnn.models import resnet8 as resnet8
    from parallelcnn.models import resnet20 as resnet20
    from parallelcnn.models import vgg_small as vgg_small
    from parallelcnn.network import NetworkHandler as NetworkHandler
    from parallelcnn.optimizers import EMA as EMA
    from parallelcnn.optimizers import SGD as SGD
    from parallelcnn.optimizers import Adam as Adam
    from parallelcnn.optimizers import AdamW as AdamW
    from parallelcnn.optimizers import Lion as Lion
    from parallelcnn.optimizers import Optimizer as Optimizer
    from parallelcnn.optimizers import RMSprop as RMSprop
    from parallelcnn.pointwise_loss import PointwiseLoss as PointwiseLoss
    from parallelcnn.profiling import Profiler as Profiler
    from parallelcnn.resilience.world import world as world
    from parallelcnn.schedules import Constant as Constant
    from parallelcnn.schedules import Cosine as Cosine
    from parallelcnn.schedules import Exponential as Exponential
    from parallelcnn.schedules import MultiStep as MultiStep
    from parallelcnn.schedules import OneCycle as OneCycle
    from parallelcnn.schedules import Plateau as Plateau
    from parallelcnn.schedules import Polynomial as Polynomial
    from parallelcnn.schedules import Schedule as Schedule
    from parallelcnn.schedules import Step as Step
    from parallelcnn.trainer import evaluate as evaluate
    from parallelcnn.trainer import train as train
    from parallelcnn.training.callbacks import Callback as Callback
    from parallelcnn.training.callbacks import LambdaCallback as LambdaCallback
    from parallelcnn.training.checkpoint import Checkpoint as Checkpoint
    from parallelcnn.training.checkpoint import CheckpointFolder as CheckpointFolder
    from parallelcnn.training.checkpoint import load_checkpoint as load_checkpoint
    from parallelcnn.training.early_stopping import EarlyStopping as EarlyStopping
    from parallelcnn.training.evaluation import Evaluation as Evaluation
    from parallelcnn.training.history import History as History
    from parallelcnn.training.loggers import CSVLogger as CSVLogger
    from parallelcnn.training.loggers import TensorBoard as TensorBoard

# The same names for the interpreter; a test compares the two lists.
_MODULES = {
    "activations": ["ActivationFunction"],
    "files.model": ["load_model", "save_model"],
    "exchange.onnx_export": ["export_onnx"],
    "exchange.onnx_import": ["import_onnx"],
    "exchange.parameter_files": ["load_safetensors", "read_parameters", "save_safetensors", "save_state_dict"],
    "exchange.torch_code": ["torch_code"],
    "training.callbacks": ["Callback", "LambdaCallback"],
    "training.early_stopping": ["EarlyStopping"],
    "training.loggers": ["CSVLogger", "TensorBoard"],
    "training.checkpoint": ["Checkpoint", "CheckpointFolder", "load_checkpoint"],
    "comm": ["Serial"],
    "resilience.world": ["world"],
    "data": ["Dataset", "load_data", "load_digits", "load_idx_folder", "load_mnist", "read_images"],
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
    "estimators": ["CNNClassifier", "CNNRegressor"],
    "training.evaluation": ["Evaluation"],
    "autodiff.gradient_check": ["gradient_check"],
    "training.history": ["History"],
    "layers": [
        "Activation",
        "AvgPool2D",
        "BatchNorm",
        "Buffer",
        "Concat",
        "Conv2D",
        "Dense",
        "DepthwiseConv2D",
        "Dropout",
        "Flatten",
        "Frozen",
        "GlobalAvgPool2D",
        "GlobalMaxPool2D",
        "GroupNorm",
        "Layer",
        "LayerNorm",
        "MaxPool2D",
        "Cutout",
        "MixUp",
        "Normalize",
        "RandomBrightness",
        "RandomContrast",
        "RandomCrop",
        "RandomFlip",
        "RandomRotation",
        "RandomZoom",
        "PReLU",
        "Parameter",
        "Recompute",
        "Reshape",
        "Residual",
        "Sequential",
        "SpatialDropout",
        "Upsample2D",
        "ZeroPad2D",
        "freeze",
        "layer",
    ],
    "folding": ["folded"],
    "losses": ["AbsoluteError", "BinaryCrossEntropy", "HuberLoss", "MeanSquaredError", "SoftmaxCrossEntropy"],
    "models": ["lenet5", "mobilenet_small", "paper", "resnet20", "resnet8", "vgg_small"],
    "network": ["NetworkHandler"],
    "metrics": [
        "Accuracy",
        "BinaryAccuracy",
        "ClassScore",
        "ConfusionMatrix",
        "F1",
        "MeanAbsoluteError",
        "Metric",
        "Precision",
        "Recall",
        "TopK",
    ],
    "optimizers": ["Adam", "AdamW", "EMA", "Lion", "Optimizer", "RMSprop", "SGD"],
    "profiling": ["Profiler"],
    "schedules": [
        "Constant",
        "Cosine",
        "Exponential",
        "MultiStep",
        "OneCycle",
        "Plateau",
        "Polynomial",
        "Schedule",
        "Step",
    ],
    "trainer": ["evaluate", "train"],
    "pointwise_loss": ["PointwiseLoss"],
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
