"""The type of dual numbers in compiled code: two numbers, without any Python object.

LLVM inlines the rules of `_dual.py` into the loop that calls a function: the derivative of x + abs(x) / 2 costs as much
as a hand-written one.
"""

from numba import types
from numba.core import cgutils
from numba.core.typeconv import Conversion
from numba.extending import (
    lower_builtin,
    lower_cast,
    make_attribute_wrapper,
    models,
    overload,
    register_model,
    type_callable,
)

from ._dual import BINARY, UNARY, Dual, slope, value, variable

_PLAIN = (types.Integer, types.Float, types.Boolean)


class DualType(types.Type):
    """numba's type of a dual number. A branch may return a dual number, and another one a plain number.

    The value has the type that it would have without a slope, so that float32 functions stay as fast and exact as they
    are. The slope is a float64, since literals are.
    """

    def __init__(self, part):
        self.part = part
        super().__init__(name=f"dual{part.bitwidth}")

    def can_convert_from(self, typingctx, other):
        if isinstance(other, DualType):
            return Conversion.promote if other.part.bitwidth < self.part.bitwidth else None
        return Conversion.safe if isinstance(other, _PLAIN) else None

    def unify(self, typingctx, other):
        if isinstance(other, DualType):
            return self if self.part.bitwidth >= other.part.bitwidth else other
        if isinstance(other, _PLAIN):
            return DualType(types.float64) if other in (types.float64, types.int64) else self
        return None


@register_model(DualType)
class _Model(models.StructModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, [("value", kind.part), ("slope", types.float64)])


make_attribute_wrapper(DualType, "value", "value")
make_attribute_wrapper(DualType, "slope", "slope")


def _build(context, builder, kind, value, slope):
    """A dual number of (LLVM value, numba type) pairs."""
    built = cgutils.create_struct_proxy(kind)(context, builder)
    built.value = context.cast(builder, *value, kind.part)
    built.slope = context.cast(builder, *slope, types.float64)
    return built._getvalue()


@type_callable(Dual)
def _type_of_dual(context):
    def type_of(value, slope):
        return DualType(types.float32 if value == types.float32 else types.float64)

    return type_of


@lower_builtin(Dual, types.Number, types.Number)
def _new(context, builder, signature, arguments):
    return _build(context, builder, signature.return_type, *zip(arguments, signature.args, strict=True))


@lower_cast(types.Integer, DualType)
@lower_cast(types.Float, DualType)
@lower_cast(types.Boolean, DualType)
def _from_plain(context, builder, from_type, to_type, value):
    zero = context.get_constant(types.float64, 0.0)
    return _build(context, builder, to_type, (value, from_type), (zero, types.float64))


@lower_cast(DualType, DualType)
def _widen(context, builder, from_type, to_type, value):
    narrow = cgutils.create_struct_proxy(from_type)(context, builder, value)
    return _build(context, builder, to_type, (narrow.value, from_type.part), (narrow.slope, types.float64))


@overload(variable)
def _variable(x):
    return lambda x: Dual(x, 1.0)


@overload(value)
def _value(y):
    return (lambda y: y.value) if isinstance(y, DualType) else (lambda y: y)


@overload(slope)
def _slope(y):
    return (lambda y: y.slope) if isinstance(y, DualType) else (lambda y: 0.0)


def _define_unary(function, rule):
    @overload(function)
    def choose(a):
        return rule if isinstance(a, DualType) else None


def _define_binary(function, both, plain_right, plain_left):
    @overload(function)
    def choose(a, b):
        if isinstance(a, DualType):
            return both if isinstance(b, DualType) else plain_right if isinstance(b, _PLAIN) else None
        return plain_left if isinstance(b, DualType) and isinstance(a, _PLAIN) else None


for _functions, _rule in UNARY.items():
    for _function in _functions:
        _define_unary(_function, _rule)
for _functions, _rules in BINARY.items():
    for _function in _functions:
        _define_binary(_function, *_rules)
