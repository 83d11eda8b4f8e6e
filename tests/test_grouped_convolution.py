"""Convolutions with groups and dilation, and depthwise ones, against PyTorch's."""

import numpy as np
import pytest
from cases import GROUPED_CONVOLUTIONS, name_of

import parallelcnn as pc
from parallelcnn.autodiff.gradient_check import gradient_check

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def padded(layer, x):
    """PyTorch's images with this layer's zeros; "same" means that an odd zero goes below and to the right."""
    if layer.padding == "valid":
        return x
    if layer.padding != "same":
        rows, columns = np.broadcast_to(layer.padding, 2).tolist()
        return torch.nn.functional.pad(x, (columns, columns, rows, rows))
    assert layer.stride == 1
    rows, columns = ((np.broadcast_to(layer.kernel_size, 2) - 1) * np.broadcast_to(layer.dilation, 2)).tolist()
    top, left = rows // 2, columns // 2
    return torch.nn.functional.pad(x, (left, columns - left, top, rows - top))


@pytest.mark.parametrize("n", [0, 1, 6, 37])
@pytest.mark.parametrize(("layer", "input_shape"), GROUPED_CONVOLUTIONS, ids=name_of)
def test_outputs_and_gradients_are_pytorchs(layer, input_shape, n):
    network = pc.NetworkHandler((pc.Residual((pc.Conv2D(input_shape[0], 1),)), layer), input_shape, seed=1)
    rng = np.random.default_rng(2)
    images = rng.normal(size=(n, *input_shape)).astype(np.float32)
    names = [name for name in network.named_arrays if name.startswith("1.")]
    for name in names:
        network.named_arrays[name][...] = rng.normal(size=network.named_arrays[name].shape)
    identity = network.named_arrays["0.0.weight"]
    identity[...] = 0  # so the residual block passes its input on, and the layer has to compute an input gradient
    output = np.moveaxis(network.forward(network.load(images, training=True), training=True), -1, 0).copy()
    dy = rng.normal(size=output.shape).astype(np.float32)
    network.backward(np.ascontiguousarray(np.moveaxis(dy, 0, -1)))

    x = torch.tensor(images, requires_grad=True)
    arrays = {name: torch.tensor(network.named_arrays[name], requires_grad=True) for name in names}
    groups = input_shape[0] if isinstance(layer, pc.DepthwiseConv2D) else layer.groups
    expected = torch.nn.functional.conv2d(
        padded(layer, x),
        arrays["1.weight"],
        arrays.get("1.bias"),
        stride=layer.stride,
        dilation=layer.dilation,
        groups=groups,
    )
    expected = torch.relu(expected) if layer.activation == "relu" else expected
    expected.backward(torch.tensor(dy))
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    gradients = network.layout.views(network.gradients)[1]
    for name, array in arrays.items():
        np.testing.assert_allclose(gradients[name[2:]], array.grad.numpy(), rtol=1e-4, atol=1e-4)
    # The gradient of the 1 x 1 convolution's bias is the input gradient, summed over samples and places.
    bias = network.layout.views(network.gradients)[0]["0.bias"]
    np.testing.assert_allclose(bias, x.grad.numpy().sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_a_depthwise_convolution_is_one_with_as_many_groups_as_channels():
    depthwise = pc.DepthwiseConv2D(3, multiplier=2, padding=1, activation="tanh")
    grouped = pc.Conv2D(8, 3, padding=1, activation="tanh", groups=4)
    one, other = (pc.NetworkHandler((layer,), (4, 5, 6), seed=3) for layer in (depthwise, grouped))
    assert one.parameters_sha256() == other.parameters_sha256()
    images = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(one.forward(one.load(images)), other.forward(other.load(images)))
    assert depthwise.multiply_adds((4, 5, 6)) == grouped.multiply_adds((4, 5, 6)) == 8 * 5 * 6 * 9


@pytest.mark.parametrize(
    ("make", "input_shape", "message"),
    [
        (lambda: pc.Conv2D(5, 3, groups=2), (4, 5, 5), r"Conv2D\(5, 3, groups=2\): filters must be divisible by"),
        (lambda: pc.Conv2D(4, 3, groups=2), (3, 5, 5), "channels must be divisible by groups=2, got 3"),
        (lambda: pc.Conv2D(4, 3, groups=0), (3, 5, 5), "groups must be a positive integer, got 0"),
        (lambda: pc.Conv2D(4, 3, stride=2, dilation=2), (3, 9, 9), "dilation above 1 takes stride 1, got stride=2"),
        (lambda: pc.Conv2D(4, 3, dilation=0), (3, 9, 9), "dilation must be a positive integer, got 0"),
        (lambda: pc.Conv2D(4, 3, dilation=3), (3, 6, 9), "window of 7 x 7 is larger than the image, 6 x 9"),
        (lambda: pc.DepthwiseConv2D(3), (9,), r"DepthwiseConv2D\(3\) takes images \(C, H, W\), got \(9,\)"),
        (lambda: pc.DepthwiseConv2D(3), (2, 2, 9), r"DepthwiseConv2D\(3\): a window of 3 x 3 is larger"),
        (lambda: pc.DepthwiseConv2D(3, multiplier=0), (2, 9, 9), "multiplier must be a positive integer"),
        (lambda: pc.DepthwiseConv2D(3, padding="x"), (2, 9, 9), r"DepthwiseConv2D\(3, padding='x'\): padding must be"),
    ],
)
def test_what_does_not_fit_is_refused(make, input_shape, message):
    with pytest.raises(pc.ShapeError, match=message):
        pc.NetworkHandler((make(),), input_shape)


@pytest.mark.parametrize("layer", [pc.Conv2D(4, 3, groups=2), pc.DepthwiseConv2D(3, dilation=2)], ids=name_of)
def test_a_pooling_after_it_is_not_fused_and_still_right(layer):
    network = pc.NetworkHandler((layer, pc.MaxPool2D(2)), (4, 9, 9))
    assert [type(one) for one, _ in network.fused_layers] == [type(layer), pc.MaxPool2D]
    assert gradient_check(layer, (4, 7, 7), 2).largest_difference < 1e-6
