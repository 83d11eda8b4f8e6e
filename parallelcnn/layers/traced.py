"""Layers from plain numpy functions, which are differentiated automatically."""

import inspect
import math
from collections.abc import Callable, Container, Hashable
from dataclasses import MISSING, field, make_dataclass
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from parallelcnn.arguments import as_array
from parallelcnn.autodiff.contraction import broadcast, contiguous
from parallelcnn.autodiff.traced_array import Traced
from parallelcnn.autodiff.tracing import Rehearsal, Trace
from parallelcnn.errors import InputError, ShapeError, nearest_name
from parallelcnn.resources import check_memory

from .base import Array, Layer, Parameter, Shape, Step

Function = Callable[..., Any]


class Definition(NamedTuple):
    """What a traced layer is made of: its function, and what `layer` was given for each parameter."""

    function: Function
    parameters: dict[str, Any]


class TracedLayer(Layer):
    """Base class of the layers that `layer` makes. Their fields are the hyperparameters of the function."""

    definition: ClassVar[Definition]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            try:
                hash(value)
            except TypeError:
                what = f"{type(self).__name__}: {name} must be a number, a text or a tuple of these"
                raise InputError(f"{what}, got {value!r}") from None

    def output_shape(self, input_shape: Shape) -> Shape:
        (trace, y, _), (again, z, _) = self._rehearse(input_shape), self._rehearse(input_shape)
        pairs = zip(trace.constants, again.constants, strict=False)
        if len(trace.constants) != len(again.constants) or not all(map(_are_equal, pairs)):
            raise InputError(f"{self}: the function uses other numbers in each call, such as random ones: it must not")
        if y.shape != z.shape:
            raise InputError(
                f"{self}: the function must do the same in each call, got results of shapes {y.shape} and {z.shape}"
            )
        return y.shape

    def parameters(self, input_shape: Shape) -> dict[str, Parameter]:
        declared = self.definition.parameters.items()
        return {name: self._parameter(name, value, input_shape) for name, value in declared}

    def multiply_adds(self, input_shape: Shape) -> int:
        return self._rehearse(input_shape)[0].multiply_adds

    def forward(self, step: Step, x: Array) -> Array:
        trained = step.grads if step.training else ()
        trace, y, variables = self._trace(
            Trace(step), x, step.params, step.training and step.needs_input_gradient, trained
        )
        step.save(trace, y, variables)
        return contiguous(step, broadcast(y.array, (*y.shape, step.n)))

    def backward(self, step: Step, dy: Array) -> Array | None:
        trace, y, variables = step.saved
        dx, *gradients = trace.backward(y, dy, variables)
        for name, gradient in zip(self.definition.parameters, gradients, strict=True):
            if name in step.grads:
                step.call(np.copyto, step.grads[name][..., np.newaxis], 0.0 if gradient is None else gradient)
        if not step.needs_input_gradient:
            return None
        if dx is None:
            dx = step.scratch(variables[0].array.shape)
            step.call(np.copyto, dx, 0.0)
        return contiguous(step, dx)

    def _rehearse(self, input_shape: Shape) -> tuple[Trace, Traced, list[Traced]]:
        """Trace the function for one sample, without computing anything."""
        declared = self.parameters(input_shape)
        check_memory(f"the parameters of {self}", 8 * sum(math.prod(one.shape) for one in declared.values()))
        params = {name: np.empty(one.shape) for name, one in declared.items()}
        return self._trace(Trace(Rehearsal()), np.empty((*input_shape, 1)), params, False, ())

    def _trace(
        self, trace: Trace, x: Array, params: dict[str, Array], x_is_trained: bool, trained: Container[str]
    ) -> tuple[Trace, Traced, list[Traced]]:
        """Call the function; returns its trace, its result, and the variables: x and the parameters."""
        variable = Traced(trace, x, x_is_trained)
        of_layer = {
            name: Traced(trace, params[name][..., np.newaxis], name in trained) for name in self.definition.parameters
        }
        y = trace.run(self, self.definition.function, variable, {**of_layer, **vars(self)})
        return trace, y, [variable, *of_layer.values()]

    def _parameter(self, name: str, declared: Any, input_shape: Shape) -> Parameter:
        value = declared
        if callable(declared):
            try:
                value = declared(input_shape, *(getattr(self, one) for one in _hyperparameters_of(declared)))
            except Exception as error:
                raise ShapeError(
                    f"{self}: parameter {name!r} cannot be made for an input of shape {input_shape}: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if isinstance(value, Parameter):
            return value
        rule = "a number, an array, a Parameter or a function of the input shape that returns one"
        array = as_array(f"{self}: parameter {name!r}", value, rule)
        return Parameter(array.shape, lambda rng, shape: array, weight_decay=False)


def layer(function: Function | None = None, /, **parameters: Any) -> Any:
    """Decorator that makes a layer of a plain numpy function. Both passes are recorded; the derivative is automatic.

        @pc.layer(scale=np.ones, shift=np.zeros)
        def layer_norm(x, scale, shift, epsilon=1e-5):
            centred = x - x.mean()
            return scale * centred / np.sqrt(np.square(centred).mean() + epsilon) + shift

        layers = (pc.Conv2D(8, 3), layer_norm(epsilon=1e-3), pc.Flatten(), pc.Dense(10))

    The function's first argument is one sample, (C, H, W) or (features,): there is no axis of samples. Other arguments
    are parameters, which are trained, if they are given here, and otherwise hyperparameters of the layer. It returns
    one sample, of any shape. It is called when a network is built and when its passes are recorded, not in each step.

    Args:
        function: the function; see `parallelcnn guide differentiation` for what it may contain.
        parameters: for each parameter its initial value: a number, an array, a `Parameter`, or a function of the input
            shape that returns one of them, such as np.ones. The function's further arguments without default are
            hyperparameters of the layer. Weight decay applies to a `Parameter` unless it says otherwise, and not to
            numbers and arrays.

    Returns:
        the layer's class, named as the function. Its arguments are the hyperparameters.

    Raises:
        InputError: if the arguments of the function do not fit.
    """
    if function is None:
        return lambda function: layer(function, **parameters)
    if not isinstance(function, FunctionType) or not function.__name__.isidentifier():
        raise InputError(f"pc.layer takes a function that is defined with `def`, got {function!r}")
    what = f"pc.layer: {function.__name__}"
    first, *others = inspect.signature(function).parameters.values() or (None,)
    if first is None or any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in (first, *others)):
        raise InputError(f"{what} must have the arguments (x, ...), without *args and **kwargs")
    names = [one.name for one in others]
    for name in parameters:
        if name not in names:
            raise InputError(f"{what} has no argument {name!r}: {nearest_name(name, names)}")
    hyperparameters = [one for one in others if one.name not in parameters]
    for one in hyperparameters:
        if hasattr(TracedLayer, one.name):
            raise InputError(f"{what}: no hyperparameter can be called {one.name!r}, as a method of layers")
        if one.default is not one.empty and not isinstance(one.default, Hashable):
            raise InputError(f"{what}: {one.name} must be a number, a text or a tuple, got {one.default!r}")
    of_class = {
        "__doc__": function.__doc__,
        "__module__": function.__module__ or "__main__",  # exec may set none
        "__qualname__": function.__qualname__,
        "definition": Definition(function, parameters),
    }
    return make_dataclass(
        function.__name__,
        [(one.name, Any, _field(one)) for one in hyperparameters],
        bases=(TracedLayer,),
        namespace=of_class,
        frozen=True,
        repr=False,
    )


def _field(argument: inspect.Parameter) -> Any:
    default = MISSING if argument.default is argument.empty else argument.default
    return field(default=default, kw_only=argument.kind is argument.KEYWORD_ONLY)


def _hyperparameters_of(function: Function) -> list[str]:
    """The names of the arguments without default after the first. Functions of numpy's may have no signature."""
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except ValueError:
        return []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one.name for one in arguments[1:] if one.default is one.empty and one.kind in plain]


def _are_equal(pair: tuple[Array, Array]) -> bool:
    return np.array_equal(*pair, equal_nan=True)
