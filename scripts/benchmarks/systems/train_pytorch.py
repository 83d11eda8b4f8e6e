#!/usr/bin/env python3
"""Train in PyTorch.

Variants:
* channels_last: the memory format that its documentation recommends for convolutions.
* contiguous: the default memory format.
* compiled: channels_last with torch.compile.
* ddp, ddp_channels_last: DistributedDataParallel over gloo, started by mpirun.
* bfloat16_...: the same with autocast: convolutions and products of matrices in bfloat16, which has 8 bits of precision
  instead of 24.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import contract
import numpy as np

import parallelcnn as pc

_WAYS = ("channels_last", "contiguous", "compiled", "ddp", "ddp_channels_last")
VARIANTS = (*_WAYS, *(f"bfloat16_{way}" for way in _WAYS))
_ACTIVATIONS = {
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softplus": "Softplus",
    "gelu": "GELU",
    "swish": "SiLU",
}


class PyTorch(contract.Framework):
    """A network in PyTorch; the whole training set is in memory as a float32 tensor."""

    def __init__(self, task: contract.Task) -> None:
        options = task.options
        os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
        try:
            import torch
        except ImportError as error:
            raise contract.NotInstalled(f"PyTorch is not installed ({error})") from None
        self._torch, self.task = torch, task
        self.versions = {"torch": torch.__version__}
        torch.set_num_threads(options.threads)
        way = options.variant.removeprefix("bfloat16_")
        self._is_autocast = way != options.variant
        self.rank, self.ranks = self._join() if way.startswith("ddp") else (0, 1)
        channels_last = way in ("compiled", "channels_last", "ddp_channels_last")
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        images, labels = task.float_sets[0]
        self._images = torch.from_numpy(images).contiguous(memory_format=memory_format)
        self._labels = torch.from_numpy(labels)
        self._network = build(task.layers, task.input_shape).to(memory_format=memory_format)
        self._model: Any = self._network
        if self.ranks > 1:
            wrap = torch.nn.parallel.DistributedDataParallel
            self._model = wrap(self._network, gradient_as_bucket_view=True, static_graph=True)
        self._loss = torch.compile(self._loss_of) if way == "compiled" else self._loss_of
        # fused: one pass over all parameters
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=options.learning_rate, fused=True)
        self.reset()

    def _join(self) -> tuple[int, int]:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        folder = comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None)
        store = f"file://{folder}/rendezvous"
        self._torch.distributed.init_process_group("gloo", store, rank=comm.rank, world_size=comm.size)
        return comm.rank, comm.size

    def _loss_of(self, x: Any, y: Any) -> Any:
        with self._torch.autocast("cpu", self._torch.bfloat16, enabled=self._is_autocast):
            output = self._model(x)
        return self._torch.nn.functional.cross_entropy(output.float(), y, reduction="sum")

    def reset(self) -> None:
        with self._torch.no_grad():
            for parameter, value in zip(self._network.parameters(), self.task.start_arrays(), strict=True):
                parameter.copy_(self._torch.from_numpy(value))

    def train(self, samples: int, epochs: int) -> tuple[float, Sequence[float]]:
        losses = []
        images, labels = self._images, self._labels
        self._wait()
        with contract.Meter() as meter:
            for epoch in range(1, epochs + 1):
                for minibatch in self.task.minibatches(samples, epoch):
                    start, stop = (len(minibatch) * i // self.ranks for i in (self.rank, self.rank + 1))
                    chosen = self._torch.from_numpy(minibatch[start:stop])
                    self._optimizer.zero_grad()
                    # DDP averages over ranks: sums over shares, times ranks / minibatch, give the minibatch's mean.
                    loss = self._loss(images.index_select(0, chosen), labels.index_select(0, chosen))
                    loss = loss * (self.ranks / len(minibatch))
                    loss.backward()
                    self._optimizer.step()
                    losses.append(loss.detach())
            self._wait()
        all_losses = self._torch.stack(losses)
        if self.ranks > 1:
            self._torch.distributed.all_reduce(all_losses)
        return meter.seconds, (all_losses / self.ranks).tolist()

    def _wait(self) -> None:
        if self.ranks > 1:
            self._torch.distributed.barrier()

    def logits(self, images: np.ndarray) -> np.ndarray:
        with self._torch.no_grad():
            return self._network(self._torch.from_numpy(images)).numpy()

    def gather(self, value: Any) -> list[Any]:
        values = [value] * self.ranks
        if self.ranks > 1:
            self._torch.distributed.all_gather_object(values, value)
        return values

    def close(self) -> None:
        if self.ranks > 1:
            self._torch.distributed.destroy_process_group()


def build(layers: Sequence[pc.Layer], input_shape: tuple[int, ...]) -> Any:
    """The PyTorch module that computes the same as these layers. Its parameters are in parallelcnn's order."""
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, layer: pc.Residual, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.inside = build(layer.layers, shape)
            shortcut = layer.shortcut if isinstance(layer.shortcut, tuple) else filter(None, [layer.shortcut])
            self.shortcut = build(tuple(shortcut), shape)

        def forward(self, x: Any) -> Any:
            return self.inside(x) + self.shortcut(x)

    modules: list[Any] = []
    shape = tuple(input_shape)
    for layer in layers:
        output_shape = tuple(layer.output_shape(shape))
        if isinstance(layer, pc.Conv2D | pc.DepthwiseConv2D):
            padding = (
                layer.padding if isinstance(layer.padding, str) else tuple(np.broadcast_to(layer.padding, 2).tolist())
            )
            groups = layer.groups if isinstance(layer, pc.Conv2D) else shape[0]
            size = layer.kernel_size, layer.stride, padding
            modules.append(nn.Conv2d(shape[0], output_shape[0], *size, groups=groups, bias=layer.bias))
        elif isinstance(layer, pc.Dense):
            modules.append(nn.Linear(shape[0], layer.units, bias=layer.bias))
        elif isinstance(layer, pc.BatchNorm):
            modules.append(nn.BatchNorm2d(shape[0], layer.epsilon, layer.momentum))
        elif isinstance(layer, pc.MaxPool2D):
            modules.append(nn.MaxPool2d(layer.pool_size, layer.stride))
        elif isinstance(layer, pc.GlobalAvgPool2D):
            modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        elif isinstance(layer, pc.Flatten):
            modules.append(nn.Flatten())
        elif isinstance(layer, pc.Residual):
            modules.append(Residual(layer, shape))
        else:
            raise contract.NotInstalled(f"no module of PyTorch is known here for {layer}")
        activation = getattr(layer, "activation", "identity")
        if activation != "identity":
            modules.append(getattr(nn, _ACTIVATIONS[activation])())
        shape = output_shape
    return nn.Sequential(*modules)


if __name__ == "__main__":
    contract.main("PyTorch", VARIANTS, PyTorch)
