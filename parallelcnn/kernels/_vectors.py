"""Generate vector instructions for the innermost tiles of kernels, with the sums in registers.

A compiler vectorises a plain loop, but does not make a fast tile: KB x VB sums that stay in registers while a loop runs
over channels and taps. So tiles are written in LLVM's intermediate language, through numba's `intrinsic`: Python loops
generate the instructions once, when the kernel is compiled. Beside each tile, plain numpy code defines what it
computes. This code also runs when compilation is off (NUMBA_DISABLE_JIT).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

_INDEX = ir.IntType(64)
_LANE = ir.IntType(32)


def _vector_bytes_and_registers() -> tuple[int, int]:
    """The width of this machine's vectors in bytes, and the number of its vector registers."""
    if config.CPU_NAME not in (None, "host"):  # compiled for another machine: assume what all 64-bit machines have
        return 16, 16
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 32
    if features.get("avx2"):
        return 32, 16
    return 16, 32 if features.get("neon") else 16


VECTOR_BYTES, REGISTERS = _vector_bytes_and_registers()


def vectorised(plain: Callable[..., None], like: str, constants: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Decorator for functions that generate the instructions for `plain`; makes them callable from kernels.

    When a kernel is compiled, the decorated function is called with `Vectors`, LLVM's builder, and its arguments:
    arrays as `Strided`, tuples as lists, indices as 64-bit integers, None as None, and constants of the kernel as
    Python numbers. When compilation is off, kernels call `plain`.

    Args:
        like: name of the array whose type the vectors have.
        constants: names of the arguments that are compile-time constants.
    """

    def decorate(write: Callable[..., None]) -> Any:
        if config.DISABLE_JIT:
            return plain
        names = list(inspect.signature(write).parameters)[2:]

        def typed(_: Any, *kinds: Any) -> Any:
            known = {name: kind.literal_value for name, kind in zip(names, kinds, strict=True) if name in constants}

            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                given = dict(zip(names, zip(signature.args, arguments, strict=True), strict=True))
                v = Vectors(context, builder, given[like][0].dtype)
                write(v, builder, *(known[name] if name in known else v.argument(*given[name]) for name in names))
                return context.get_dummy_value()

            return types.void(*kinds), generate

        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("_", *names)]
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        typed.__name__ = write.__name__
        return intrinsic(prefer_literal=bool(constants))(typed)

    return decorate


class Vectors:
    """Generates vector instructions on `lanes` numbers of one type. Counts and indices have 64 bits."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self._context, self._builder = context, builder
        self._number = context.get_value_type(dtype)
        self._item_bytes = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self._item_bytes
        self._vector = self._vector_of(self._number)
        self.zero = ir.Constant(self._vector, None)

    def argument(self, kind: Any, value: Any) -> Any:
        """Convert an argument of type `kind` to the form described in `vectorised`."""
        if isinstance(kind, types.Array):
            return Strided(self._context, self._builder, kind, value)
        if isinstance(kind, types.BaseTuple):
            return cgutils.unpack_tuple(self._builder, value)
        if isinstance(kind, types.Integer):
            return self._context.cast(self._builder, value, kind, types.int64)
        return None if kind is types.none else value

    def index(self, value: int) -> Any:
        return ir.Constant(_INDEX, value)

    def times(self, factor: int, value: Any) -> Any:
        return self._builder.mul(self.index(factor), value)

    def sum(self, *values: Any) -> Any:
        total = values[0]
        for value in values[1:]:
            total = self._builder.add(total, value)
        return total

    def smaller(self, a: Any, b: Any) -> Any:
        return self._builder.select(self._builder.icmp_signed("<", a, b), a, b)

    def larger(self, a: Any, b: Any) -> Any:
        return self._builder.select(self._builder.icmp_signed(">", a, b), a, b)

    def blocks(self, size: Any, block: Any) -> Any:
        """The number of blocks that cover `size`."""
        return self._builder.sdiv(self.sum(size, block, self.index(-1)), block)

    def number(self, pointer: Any, i: int) -> Any:
        """Load the number at pointer[i]."""
        return self._builder.load(self._builder.gep(pointer, [self.index(i)]))

    def splat(self, number: Any) -> Any:
        """A vector with the same number in every lane."""
        return self._splat(number, self._vector)

    def variable(self, vector: Any) -> Any:
        """A variable with the initial value `vector`, or an index. The compiler keeps it in a register if it can."""
        variable = cgutils.alloca_once(self._builder, vector.type)
        self._builder.store(vector, variable)
        return variable

    def value(self, variable: Any) -> Any:
        return self._builder.load(variable)

    def add_product(self, variable: Any, a: Any, b: Any) -> None:
        """variable += a * b, with fused multiply-add if the machine has it."""
        fmuladd = self._function("fmuladd", self._vector, [self._vector] * 3)
        self._builder.store(self._builder.call(fmuladd, [a, b, self._builder.load(variable)]), variable)

    def plus(self, total: Any, *terms: Any) -> Any:
        """total + factor * vector + ..., for terms that are a constant number and a vector in turn."""
        for factor, vector in zip(terms[::2], terms[1::2], strict=True):
            if factor in (1, -1):
                total = (self._builder.fadd if factor == 1 else self._builder.fsub)(total, vector)
            elif total is self.zero:
                total = self._builder.fmul(self.splat(ir.Constant(self._number, float(factor))), vector)
            else:
                fmuladd = self._function("fmuladd", self._vector, [self._vector] * 3)
                constant = self.splat(ir.Constant(self._number, float(factor)))
                total = self._builder.call(fmuladd, [constant, vector, total])
        return total

    def table(self, size: int) -> Any:
        """Memory for `size` vectors."""
        place = cgutils.alloca_once(self._builder, self._vector, size=size)
        place.align = VECTOR_BYTES
        return self._builder.bitcast(place, self._number.as_pointer())

    def unknown(self, value: int) -> Any:
        """An index whose value the compiler does not know, so that it does not unroll a loop that ends there."""
        same = ir.FunctionType(_INDEX, [_INDEX])
        return self._builder.asm(same, "", "=r,0", [self.index(value)], False)

    def keep_rolled(self) -> None:
        """Keep the compiler from unrolling the loop around this place, which has no registers to spare.

        It is an empty instruction that must not be duplicated.
        """
        nothing = ir.FunctionType(ir.VoidType(), [])
        self._builder.call(ir.InlineAsm(nothing, "", "", side_effect=True), [], attrs="convergent")

    def total(self, vector: Any) -> Any:
        """The sum of all lanes."""
        reduce = self._function("vector.reduce.fadd", self._number, [self._number, self._vector])
        return self._builder.call(reduce, [ir.Constant(self._number, 0.0), vector], fastmath=("reassoc",))

    def within(self, first: Any, size: Any) -> Any:
        """The mask of the lanes for which 0 <= first + lane < size."""
        lanes = ir.Constant(self._vector_of(_LANE), [*range(self.lanes)])
        return self._builder.icmp_unsigned("<", self._builder.add(self.integers(first), lanes), self.integers(size))

    def masks(self, first: Any, size: Any, count: int, *, masked: bool) -> list[Any]:
        """`within` for each of `count` consecutive vectors; None for each if they are not masked."""
        places = [self.sum(first, self.index(i * self.lanes)) for i in range(count)]
        return [self.within(place, size) if masked else None for place in places]

    def cover(self, size: Any, write: Callable[[Any, Any], None], *, again: bool) -> None:
        """Generate loops over vectors that cover `size` numbers: `write(first, mask)`, mask None for a whole vector.

        Masks are avoided, since only AVX-512 has fast ones: without them a step of the paper's network, minibatch 50,
        takes 950 us instead of 1,270 (AMD Zen 3, AVX2). AVX2 has no masks for bytes.

        Args:
            again: whether numbers may be written twice. Then the last vector overlaps the one before it if it can.
        """
        builder, lanes, zero = self._builder, self.index(self.lanes), self.index(0)
        if again:
            last = builder.sub(size, lanes)
            with builder.if_else(builder.icmp_signed(">=", last, zero)) as (then, otherwise):
                with then, loop(builder, zero, self.blocks(size, lanes)) as number:
                    write(self.smaller(builder.mul(number, lanes), last), None)
                with otherwise, builder.if_then(builder.icmp_signed(">", size, zero)):
                    write(zero, self.within(zero, size))
            return
        whole = builder.sdiv(size, lanes)
        rest = builder.mul(whole, lanes)
        with loop(builder, zero, whole) as number:
            write(builder.mul(number, lanes), None)
        with builder.if_then(builder.icmp_signed("<", rest, size)):
            write(rest, self.within(rest, size))

    def with_mask_if_needed(self, first: Any, size: Any, write: Callable[[Any], None]) -> None:
        """Generate `write(mask)` for the vector from `first` on: without a mask if all its lanes are before `size`."""
        whole = self._builder.icmp_signed("<=", self.sum(first, self.index(self.lanes)), size)
        with self._builder.if_else(whole) as (then, otherwise):
            with then:
                write(None)
            with otherwise:
                write(self.within(first, size))

    def load(self, pointer: Any, i: int = 0, mask: Any = None) -> Any:
        """Load the vector i vectors after the pointer. Lanes outside the mask are zero; their memory is not read."""
        pointer = self._vector_pointer(pointer, i)
        if mask is None:
            return self._builder.load(pointer, align=self._item_bytes)
        return self._masked_load(pointer, mask, self.zero, self._item_bytes)

    def store(self, vector: Any, pointer: Any, i: int = 0, mask: Any = None) -> None:
        """Store a vector i vectors after the pointer. Lanes outside the mask are not written."""
        pointer = self._vector_pointer(pointer, i)
        if mask is None:
            self._builder.store(vector, pointer, align=self._item_bytes)
        else:
            self._masked_store(vector, pointer, mask, self._item_bytes)

    def gathered(self, pointers: list[Any]) -> Any:
        """A vector of the numbers at these addresses."""
        vector: Any = ir.Constant(self._vector, ir.Undefined)
        for lane, pointer in enumerate(pointers):
            vector = self._builder.insert_element(vector, self._builder.load(pointer), ir.Constant(_LANE, lane))
        return vector

    def integers(self, value: Any) -> Any:
        """A vector with the same 32-bit integer in every lane."""
        return self._splat(self._builder.trunc(value, _LANE), self._vector_of(_LANE))

    def load_integers(self, pointer: Any, mask: Any = None) -> Any:
        """Load unsigned integers of the pointer's type as a vector of 32-bit integers; zero outside the mask."""
        kind = self._vector_of(pointer.type.pointee)
        pointer = self._builder.bitcast(pointer, kind.as_pointer())
        if mask is None:
            loaded = self._builder.load(pointer, align=1)
        else:
            loaded = self._masked_load(pointer, mask, ir.Constant(kind, None), 1)
        return self._builder.zext(loaded, self._vector_of(_LANE))

    def store_integers(self, integers: Any, pointer: Any, mask: Any = None) -> None:
        """Store integers as the pointer's type. Lanes outside the mask are not written."""
        kind = self._vector_of(pointer.type.pointee)
        narrow = self._builder.trunc(integers, kind) if kind.element != _LANE else integers
        pointer = self._builder.bitcast(pointer, kind.as_pointer())
        if mask is None:
            self._builder.store(narrow, pointer, align=1)
        else:
            self._masked_store(narrow, pointer, mask, 1)

    def load_as(self, pointer: Any, kind: Any) -> Any:
        """Load a vector of another type, uint8 or the vector's own, and convert it to the vector's type."""
        if kind is not types.uint8:
            return self.load(pointer)
        bytes_ = self._vector_of(ir.IntType(8))
        loaded = self._builder.load(self._builder.bitcast(pointer, bytes_.as_pointer()), align=1)
        return self._builder.uitofp(loaded, self._vector)

    def prefetch(self, pointer: Any, i: int = 0, *, written: bool = False) -> None:
        """Prefetch the cache line i vectors after the pointer, which may lie outside all arrays.

        written: to write to it. A processor waits for a line before it can write a part of it, and it waits long if
        many lines in different places are written one after the other.
        """
        pointer = self._vector_pointer(pointer, i)
        byte = ir.IntType(8).as_pointer()
        flags = [ir.Constant(_LANE, flag) for flag in (int(written), 3, 1)]  # high locality, data
        prefetch = self._function("prefetch", ir.VoidType(), [byte, *[_LANE] * 3], "p0")
        self._builder.call(prefetch, [self._builder.bitcast(pointer, byte), *flags])

    def transposed(self, rows: list[Any]) -> list[Any]:
        """Transpose a square of `lanes` vectors: returns its columns as vectors.

        Pairs of rows exchange single numbers, then pairs of numbers, then fours, and so on.
        """
        distance = 1
        while distance < self.lanes:
            lanes = range(self.lanes)
            low = [lane if not lane & distance else self.lanes + lane - distance for lane in lanes]
            high = [lane + distance if not lane & distance else self.lanes + lane for lane in lanes]
            exchanged = list(rows)
            for a in lanes:
                if not a & distance:
                    b = a + distance
                    exchanged[a] = self._shuffle(rows[a], rows[b], low)
                    exchanged[b] = self._shuffle(rows[a], rows[b], high)
            rows = exchanged
            distance *= 2
        return rows

    def backwards(self, vector: Any) -> Any:
        """The vector with its lanes in reverse order."""
        return self._shuffle(vector, vector, [*reversed(range(self.lanes))])

    def deinterleaved(self, a: Any, b: Any) -> tuple[Any, Any]:
        """The numbers of two vectors at even places, and at odd places."""
        places = range(0, 2 * self.lanes, 2)
        return self._shuffle(a, b, [*places]), self._shuffle(a, b, [place + 1 for place in places])

    def either(self, mask: Any, a: Any, b: Any) -> Any:
        """The vector a if the integer `mask` is -1, b if it is 0. Without a branch, which a processor could not predict
        for random masks.
        """
        bits = self._vector_of(ir.IntType(8 * self._item_bytes))
        splat = self._splat(self._builder.trunc(mask, bits.element), bits)
        a, b = (self._builder.bitcast(one, bits) for one in (a, b))
        chosen = self._builder.xor(b, self._builder.and_(self._builder.xor(a, b), splat))
        return self._builder.bitcast(chosen, self._vector)

    def _vector_of(self, number: Any) -> Any:
        return ir.VectorType(number, self.lanes)

    def _vector_pointer(self, pointer: Any, i: int) -> Any:
        beside = self._builder.gep(pointer, [self.index(i * self.lanes)])
        return self._builder.bitcast(beside, self._vector.as_pointer())

    def _masked_load(self, pointer: Any, mask: Any, otherwise: Any, alignment: int) -> Any:
        kind = otherwise.type
        arguments = [pointer.type, _LANE, mask.type, kind]
        function = self._function("masked.load", kind, arguments, f"{_name_of(kind)}.p0")
        return self._builder.call(function, [pointer, ir.Constant(_LANE, alignment), mask, otherwise])

    def _masked_store(self, vector: Any, pointer: Any, mask: Any, alignment: int) -> None:
        arguments = [vector.type, pointer.type, _LANE, mask.type]
        function = self._function("masked.store", ir.VoidType(), arguments, f"{_name_of(vector.type)}.p0")
        self._builder.call(function, [vector, pointer, ir.Constant(_LANE, alignment), mask])

    def _shuffle(self, a: Any, b: Any, picks: list[int]) -> Any:
        """The vector of the elements `picks` of a followed by b."""
        return self._builder.shuffle_vector(a, b, ir.Constant(self._vector_of(_LANE), picks))

    def _splat(self, number: Any, vector: Any) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        first = self._builder.insert_element(undefined, number, ir.Constant(_LANE, 0))
        return self._shuffle(first, undefined, [0] * self.lanes)

    def _function(self, name: str, result: Any, arguments: list[Any], suffix: str = "") -> Any:
        kind = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(
            self._builder.module, kind, f"llvm.{name}.{suffix or _name_of(self._vector)}"
        )


def _name_of(vector: Any) -> str:
    """The name of a vector type in LLVM's function names, such as v16f32."""
    return f"v{vector.count}{vector.element.intrinsic_name}"


class Strided:
    """An array in generated code: its address, and its stride along each axis in bytes."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self.dtype = kind.dtype
        self._number = context.get_value_type(kind.dtype).as_pointer()
        self._data = builder.ptrtoint(array.data, _INDEX)
        self.shape = cgutils.unpack_tuple(builder, array.shape, kind.ndim)
        self._strides = cgutils.unpack_tuple(builder, array.strides, kind.ndim)

    def at(self, *place: Any) -> Any:
        """The address of an element."""
        address = self._data
        for index, stride in zip(place, self._strides, strict=True):
            address = self._builder.add(address, self._builder.mul(index, stride))
        return self._builder.inttoptr(address, self._number)

    def stride(self, axis: int) -> Any:
        """The distance of neighbouring elements along an axis in bytes."""
        return self._strides[axis]


@contextmanager
def loop(builder: Any, start: Any, stop: Any) -> Iterator[Any]:
    """Generate a loop; yields its counter."""
    with cgutils.for_range(builder, stop, start) as counter:
        yield counter.index
