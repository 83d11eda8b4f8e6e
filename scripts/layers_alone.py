"""Convolutions by themselves, in parallelcnn and in PyTorch: forward, and the gradients by weights and by input."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from measuring import FORMATS, matrix_product_rate, require_agreement, seconds_of, steps_within

import parallelcnn as pc
from parallelcnn.parameters import ParameterLayout
from parallelcnn.workspace import Workspaces


class LayerCase(NamedTuple):
    """A convolution and the shape of its input."""

    layer: pc.Conv2D
    input_shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        size, _ = np.broadcast_to(self.layer.kernel_size, 2)
        stride = f" stride {self.layer.stride}" if self.layer.stride != 1 else ""
        valid = " valid" if self.layer.padding == "valid" else ""
        channels, height, width = self.input_shape
        return f"{channels}->{self.layer.filters} {height}x{width} {size}x{size}{stride}{valid}"


def _case(
    channels: int, filters: int, image: int, size: int, stride: int = 1, padding: int | str | None = None
) -> LayerCase:
    padding = size // 2 if padding is None else padding
    return LayerCase(pc.Conv2D(filters, size, stride=stride, padding=padding), (channels, image, image))


LAYERS = [
    _case(1, 6, 28, 3, padding="valid"),
    _case(6, 16, 13, 3, padding="valid"),
    _case(1, 6, 28, 5),
    _case(6, 16, 14, 5, padding="valid"),
    _case(3, 32, 32, 3),
    _case(32, 64, 16, 3),
    _case(64, 128, 8, 3),
    _case(64, 64, 32, 3),
    _case(128, 128, 16, 3),
    _case(256, 256, 8, 3),
    _case(3, 64, 32, 7, stride=2),
    _case(64, 64, 16, 1),
    _case(64, 256, 16, 1),
    _case(64, 128, 16, 3, stride=2),
]
OPERATIONS = ("forward", "dweight", "dx")


class OurLayer:
    """One convolution of parallelcnn with its arrays."""

    def __init__(self, case: LayerCase, n: int, rng: np.random.Generator) -> None:
        layer, shape = case
        self.layer = layer
        self.layout = ParameterLayout((layer.param_shapes(shape),))
        self.params = rng.normal(size=self.layout.size).astype(np.float32)
        self.gradients = np.empty_like(self.params)
        (self.param_views,) = self.layout.views(self.params)
        (self.gradient_views,) = self.layout.views(self.gradients)
        shapes = (shape, layer.output_shape(shape))
        workspace, gradients = (Workspaces((layer,), shapes, np.dtype(np.float32)).get(n) for _ in range(2))
        self.x, self.y = workspace.activations
        (self.cache,) = workspace.caches
        self.dx, self.dy = gradients.activations
        self.x[...] = rng.random(self.x.shape, np.float32)
        self.dy[...] = rng.random(self.y.shape, np.float32)

    def forward(self) -> None:
        self.layer.forward(self.param_views, self.x, self.y, self.cache, training=True)

    def backward(self, dx: np.ndarray | None) -> None:
        self.layer.backward(self.param_views, self.gradient_views, self.x, self.y, self.cache, self.dy, dx)

    def operations(self) -> dict[str, Callable[[], object]]:
        return {
            "forward": self.forward,
            "dweight": lambda: self.backward(None),
            "dweight and dx": lambda: self.backward(self.dx),
        }


class TheirLayer:
    """The same in PyTorch; its gradients by the function that autograd calls."""

    def __init__(self, ours: OurLayer, memory_format: str) -> None:
        import torch
        from pytorch_twin import MEMORY_FORMATS

        def tensor(array: np.ndarray) -> Any:
            return torch.from_numpy(np.ascontiguousarray(array)).contiguous(memory_format=MEMORY_FORMATS[memory_format])

        self.weight = tensor(ours.param_views["weight"]).requires_grad_()
        self.bias = torch.from_numpy(ours.param_views["bias"].copy()).requires_grad_()
        self.x, self.dy = (tensor(np.moveaxis(array, -1, 0)) for array in (ours.x, ours.dy))
        padding = 0 if ours.layer.padding == "valid" else ours.layer.padding
        self.stride, self.padding = ([int(v) for v in np.broadcast_to(s, 2)] for s in (ours.layer.stride, padding))
        self.conv2d = torch.nn.functional.conv2d
        self.convolution_backward = torch.ops.aten.convolution_backward

    def forward(self) -> Any:
        return self.conv2d(self.x, self.weight, self.bias, self.stride, self.padding)

    def backward(self, wanted: tuple[bool, bool, bool]) -> Any:
        """Gradients by (input, weight, bias), those wanted."""
        weight = self.weight.detach()
        return self.convolution_backward(
            self.dy, self.x, weight, [len(self.bias)], self.stride, self.padding, [1, 1], False, [0, 0], 1, wanted
        )

    def operations(self) -> dict[str, Callable[[], object]]:
        return {
            "forward": self.forward,
            "dweight": lambda: self.backward((False, True, True)),
            "dx": lambda: self.backward((True, False, False)),
        }


def run_layer_rounds(
    case: LayerCase, n: int, options: argparse.Namespace, rates: list[float]
) -> tuple[list[dict[str, float]], dict[str, list[dict[str, float]]]]:
    """Seconds of each operation in every round, ours, and PyTorch's by memory format."""
    ours = OurLayer(case, n, np.random.default_rng(0))
    theirs = {memory_format: TheirLayer(ours, memory_format) for memory_format in FORMATS}
    ours.forward()
    ours.backward(ours.dx)
    for their in theirs.values():
        dx, dweight, dbias = their.backward((True, True, True))
        results = (their.forward().detach(), dx)
        require_agreement(
            f"{case.name}: output and gradient by the input, number",
            [np.moveaxis(array, -1, 0) for array in (ours.y, ours.dx)],
            [result.numpy() for result in results],
            1e-4,
        )
        require_agreement(
            f"{case.name}: gradient by weight and bias, number",
            [ours.gradient_views["weight"], ours.gradient_views["bias"]],
            [dweight.numpy(), dbias.numpy()],
            1e-3,
        )
    subjects = {"ours": ours.operations(), **{f: theirs[f].operations() for f in FORMATS}}
    steps = {
        (who, name): steps_within(options.seconds, operation)
        for who, operations in subjects.items()
        for name, operation in operations.items()
    }
    turns: dict[str, list[dict[str, float]]] = {who: [] for who in subjects}
    for _ in range(options.rounds):
        for who, operations in subjects.items():
            times = {name: seconds_of(operation, steps[who, name]) for name, operation in operations.items()}
            turns[who].append({name: float(np.median(seconds)) for name, seconds in times.items()})
        rates.append(matrix_product_rate(seconds=0.05))
    for times in turns["ours"]:
        # Too short a time to be told from noise is not negative.
        times["dx"] = max(times.pop("dweight and dx") - times["dweight"], 1e-9)
    return turns.pop("ours"), turns
