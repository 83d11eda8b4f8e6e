"""An outside witness: PyTorch computes the same outputs, losses, gradients and steps, to float32 rounding."""

import numpy as np
import pytest

import parallelcnn as pc
from parallelcnn.losses import SoftmaxCrossEntropy

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def as_torch(layers, input_shape, params):
    """The same network in PyTorch, with copies of the same parameters."""
    modules, shape = [], input_shape
    for layer, values in zip(layers, params, strict=True):
        module = None
        if isinstance(layer, pc.Conv2D):
            padding = layer.padding if isinstance(layer.padding, str) else tuple(np.broadcast_to(layer.padding, 2))
            module = torch.nn.Conv2d(shape[0], layer.filters, layer.kernel_size, layer.stride, padding, bias=layer.bias)
        elif isinstance(layer, pc.Dense):
            module = torch.nn.Linear(shape[0], layer.units, bias=layer.bias)
        elif isinstance(layer, pc.MaxPool2D):
            module = torch.nn.MaxPool2d(layer.pool_size, layer.stride)
        elif isinstance(layer, pc.Flatten):
            module = torch.nn.Flatten()
        if values:
            with torch.no_grad():
                for name, value in values.items():
                    getattr(module, name).copy_(torch.from_numpy(value))
        modules += [module] if module is not None else []
        activation = getattr(layer, "activation", "identity")
        if activation != "identity":
            modules.append(
                {
                    "relu": torch.nn.ReLU(),
                    "leaky_relu": torch.nn.LeakyReLU(),
                    "sigmoid": torch.nn.Sigmoid(),
                    "tanh": torch.nn.Tanh(),
                    "softplus": torch.nn.Softplus(),
                    "gelu": torch.nn.GELU(),
                    "swish": torch.nn.SiLU(),
                }[activation]
            )
        shape = layer.output_shape(shape)
    return torch.nn.Sequential(*modules)


MIXED = (
    pc.Conv2D(5, 4, padding="same", activation="gelu"),
    pc.Conv2D(7, (3, 2), stride=(2, 1), padding=(1, 2), activation="swish", bias=False),
    pc.MaxPool2D(3, stride=2),
    pc.Activation("leaky_relu"),
    pc.Conv2D(4, 5, padding=2, activation="softplus"),
    pc.Flatten(),
    pc.Dense(11, activation="tanh"),
    pc.Dense(9, activation="sigmoid", bias=False),
    pc.Dense(10),
)
NETWORKS = {"paper": (pc.paper(), (1, 28, 28)), "lenet5": (pc.lenet5(), (1, 28, 28)), "mixed": (MIXED, (3, 13, 17))}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [1, 32, 100])
def test_outputs_loss_and_every_gradient_are_pytorchs(name, n, rng):
    layers, input_shape = NETWORKS[name]
    network = pc.NetworkHandler(layers, input_shape, seed=1)
    network.params += rng.normal(scale=0.05, size=network.params.size).astype(np.float32)  # no bias stays zero
    params, grads = network.layout.views(network.params), network.layout.views(network.gradients)
    twin = as_torch(layers, input_shape, params)
    images = rng.random((n, *input_shape), np.float32)
    labels = rng.integers(0, 10, n)

    logits = network.forward(network.load(images), training=True)
    wanted = twin(torch.from_numpy(images))
    np.testing.assert_allclose(logits.T, wanted.detach().numpy(), rtol=1e-4, atol=2e-5)
    doutput = network.output_gradient(n)
    loss = SoftmaxCrossEntropy().forward_backward(logits, labels, n, doutput)
    network.backward(doutput)
    torch_loss = torch.nn.functional.cross_entropy(wanted, torch.from_numpy(labels))
    torch_loss.backward()
    assert loss == pytest.approx(torch_loss.item(), rel=1e-5)
    theirs = [parameter.grad.numpy() for parameter in twin.parameters()]
    ours = [gradient for layer in grads for gradient in layer.values()]
    assert len(ours) == len(theirs)
    for gradient, their_gradient in zip(ours, theirs, strict=True):
        scale = np.abs(their_gradient).max()
        np.testing.assert_allclose(gradient, their_gradient, rtol=1e-3, atol=2e-5 * scale)


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "weight_decay": 0.01},
        {"weight_decay": 0.1},
    ],
)
def test_sgd_takes_the_steps_of_pytorchs(options, rng):
    params = rng.normal(size=50).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(params.copy()))
    theirs = torch.optim.SGD([parameter], lr=0.1, **options)
    ours = pc.SGD(0.1, **options)
    state: dict[str, np.ndarray] = {}
    for _ in range(5):
        gradients = rng.normal(size=50).astype(np.float32)
        parameter.grad = torch.from_numpy(gradients.copy())
        theirs.step()
        ours.update(params, gradients, state)
    np.testing.assert_allclose(params, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_squared_error_is_pytorchs(rng):
    from parallelcnn.losses import MeanSquaredError

    outputs, targets = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=(8, 3)).astype(np.float32)
    doutputs = np.empty_like(outputs)
    loss = MeanSquaredError().forward_backward(outputs, targets, 8, doutputs)
    theirs = torch.from_numpy(outputs.T.copy()).requires_grad_()
    their_loss = torch.nn.functional.mse_loss(theirs, torch.from_numpy(targets))
    their_loss.backward()
    assert loss == pytest.approx(their_loss.item(), rel=1e-5)
    np.testing.assert_allclose(doutputs.T, theirs.grad.numpy(), rtol=1e-5, atol=1e-7)
