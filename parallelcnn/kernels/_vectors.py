"""Vectors by name, for the innermost tiles of kernels: what a loop cannot say, that sums stay in registers.

A compiler makes a fast loop out of a plain one, but not a fast tile: KB x VB sums that stay in registers while a loop
runs over channels and taps. So the tiles are written in the compiler's own language (LLVM's, through numba's
`intrinsic`): Python loops here write out the instructions, once, when the kernel is compiled. What a tile computes
stands beside it in plain numpy, which is also what runs when compilation is off (NUMBA_DISABLE_JIT).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config

_INDEX = ir.IntType(64)
_LANE = ir.IntType(32)


def _vector_bytes_and_registers() -> tuple[int, int]:
    """How wide this machine's vectors are, and how many it holds."""
    if config.CPU_NAME not in (None, "host"):  # compiled for another machine: what every 64-bit one has
        return 16, 16
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64, 32
    if features.get("avx2"):
        return 32, 16
    return 16, 32 if features.get("neon") else 16


VECTOR_BYTES, REGISTERS = _vector_bytes_and_registers()


class Vectors:
    """Writes vector instructions: `lanes` numbers of one type at a time."""

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self._builder = builder
        self._number = context.get_value_type(dtype)
        self._item_bytes = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self._item_bytes
        self._vector = ir.VectorType(self._number, self.lanes)
        self.zero = ir.Constant(self._vector, [0.0] * self.lanes)
        self._suffix = f"v{self.lanes}f{dtype.bitwidth}"

    def index(self, value: int) -> Any:
        """A constant to count or to address with."""
        return ir.Constant(_INDEX, value)

    def times(self, factor: int, value: Any) -> Any:
        """A constant times a number to count with."""
        return self._builder.mul(self.index(factor), value)

    def sum(self, *values: Any) -> Any:
        """The sum of numbers to count with."""
        total = values[0]
        for value in values[1:]:
            total = self._builder.add(total, value)
        return total

    def smaller(self, a: Any, b: Any) -> Any:
        """The smaller of two numbers to count with."""
        return self._builder.select(self._builder.icmp_signed("<", a, b), a, b)

    def larger(self, a: Any, b: Any) -> Any:
        """The larger of two numbers to count with."""
        return self._builder.select(self._builder.icmp_signed(">", a, b), a, b)

    def blocks(self, size: Any, block: Any) -> Any:
        """How many blocks it takes to cover so many."""
        return self._builder.sdiv(self.sum(size, block, self.index(-1)), block)

    def number(self, pointer: Any, i: int) -> Any:
        """The number i places behind the pointer."""
        return self._builder.load(self._builder.gep(pointer, [self.index(i)]))

    def splat(self, number: Any) -> Any:
        """The same number in every lane."""
        return self._splat(number, self._vector)

    def variable(self, vector: Any) -> Any:
        """A variable that starts as `vector`. The compiler keeps it in a register while there are enough."""
        variable = cgutils.alloca_once(self._builder, vector.type)
        self._builder.store(vector, variable)
        return variable

    def add_product(self, variable: Any, a: Any, b: Any) -> None:
        """variable += a * b, fused where the machine can."""
        fmuladd = self._function("fmuladd", self._vector, [self._vector] * 3)
        self._builder.store(self._builder.call(fmuladd, [a, b, self._builder.load(variable)]), variable)

    def value(self, variable: Any) -> Any:
        """The vector that a variable holds."""
        return self._builder.load(variable)

    def total(self, vector: Any) -> Any:
        """The sum of all lanes."""
        reduce = self._function("vector.reduce.fadd", self._number, [self._number, self._vector])
        return self._builder.call(reduce, [ir.Constant(self._number, 0.0), vector], fastmath=("reassoc",))

    def within(self, first: Any, size: Any) -> Any:
        """The mask of the lanes for which 0 <= first + lane < size."""
        builder = self._builder
        lanes = ir.VectorType(_LANE, self.lanes)
        numbers = builder.add(self._splat(builder.trunc(first, _LANE), lanes), ir.Constant(lanes, [*range(self.lanes)]))
        return builder.icmp_unsigned("<", numbers, self._splat(builder.trunc(size, _LANE), lanes))

    def masks(self, first: Any, size: Any, count: int, *, masked: bool) -> list[Any]:
        """`within` for each of so many vectors, one behind the other; None for each where none is needed."""
        places = [self.sum(first, self.index(i * self.lanes)) for i in range(count)]
        return [self.within(place, size) if masked else None for place in places]

    def load(self, pointer: Any, i: int, mask: Any = None) -> Any:
        """The numbers i vectors behind the pointer; zero where a mask says no, and memory is not touched there."""
        pointer = self._vector_pointer(pointer, i)
        if mask is None:
            return self._builder.load(pointer, align=self._item_bytes)
        arguments = [pointer.type, _LANE, mask.type, self._vector]
        function = self._function("masked.load", self._vector, arguments, suffix=f"{self._suffix}.p0")
        return self._builder.call(function, [pointer, self._alignment, mask, self.zero])

    def integers(self, value: Any) -> Any:
        """The same integer in every lane, of 32 bits."""
        return self._splat(self._builder.trunc(value, _LANE), ir.VectorType(_LANE, self.lanes))

    def load_integers(self, pointer: Any, mask: Any) -> Any:
        """As many unsigned integers of the pointer's type, as 32 bits each; zero where a mask says no."""
        kind = ir.VectorType(pointer.type.pointee, self.lanes)
        pointer = self._builder.bitcast(pointer, kind.as_pointer())
        arguments = [pointer.type, _LANE, mask.type, kind]
        function = self._function("masked.load", kind, arguments, suffix=f"v{self.lanes}{kind.element}.p0")
        zeros = ir.Constant(kind, [0] * self.lanes)
        loaded = self._builder.call(function, [pointer, ir.Constant(_LANE, 1), mask, zeros])
        return self._builder.zext(loaded, ir.VectorType(_LANE, self.lanes))

    def store_integers(self, integers: Any, pointer: Any, mask: Any) -> None:
        """Write integers as the pointer's type; where a mask says no, memory is not touched."""
        kind = ir.VectorType(pointer.type.pointee, self.lanes)
        pointer = self._builder.bitcast(pointer, kind.as_pointer())
        arguments = [kind, pointer.type, _LANE, mask.type]
        function = self._function("masked.store", ir.VoidType(), arguments, suffix=f"v{self.lanes}{kind.element}.p0")
        narrow = self._builder.trunc(integers, kind) if kind.element != _LANE else integers
        self._builder.call(function, [narrow, pointer, ir.Constant(_LANE, 1), mask])

    def load_as(self, pointer: Any, kind: Any) -> Any:
        """As many numbers of another type, uint8 or the vector's own, turned into the vector's."""
        if kind is not types.uint8:
            return self.load(pointer, 0)
        bytes_ = ir.VectorType(ir.IntType(8), self.lanes)
        loaded = self._builder.load(self._builder.bitcast(pointer, bytes_.as_pointer()), align=1)
        return self._builder.uitofp(loaded, self._vector)

    def prefetch(self, pointer: Any) -> None:
        """Have the cache line of this address brought near; also an address outside every array does no harm."""
        byte = ir.IntType(8).as_pointer()
        flags = [ir.Constant(_LANE, flag) for flag in (0, 3, 1)]  # to read, soon and often, data
        prefetch = self._function("prefetch", ir.VoidType(), [byte, *[_LANE] * 3], suffix="p0")
        self._builder.call(prefetch, [self._builder.bitcast(pointer, byte), *flags])

    def transposed(self, rows: list[Any]) -> list[Any]:
        """The columns of a square of numbers, `lanes` vectors, as vectors.

        Pairs of rows exchange single numbers, then pairs, then fours, ... until all stand where they belong.
        """
        distance = 1
        while distance < self.lanes:
            exchanged = list(rows)
            for a in range(self.lanes):
                if not a & distance:
                    b = a + distance
                    lanes = range(self.lanes)
                    low = [lane if not lane & distance else self.lanes + lane - distance for lane in lanes]
                    high = [lane + distance if not lane & distance else self.lanes + lane for lane in lanes]
                    exchanged[a] = self._shuffle(rows[a], rows[b], low)
                    exchanged[b] = self._shuffle(rows[a], rows[b], high)
            rows = exchanged
            distance *= 2
        return rows

    def store(self, vector: Any, pointer: Any, i: int, mask: Any = None) -> None:
        """Write the numbers i vectors behind the pointer; where a mask says no, memory is not touched."""
        pointer = self._vector_pointer(pointer, i)
        if mask is None:
            self._builder.store(vector, pointer, align=self._item_bytes)
            return
        arguments = [self._vector, pointer.type, _LANE, mask.type]
        function = self._function("masked.store", ir.VoidType(), arguments, suffix=f"{self._suffix}.p0")
        self._builder.call(function, [vector, pointer, self._alignment, mask])

    def _vector_pointer(self, pointer: Any, i: int) -> Any:
        beside = self._builder.gep(pointer, [self.index(i * self.lanes)])
        return self._builder.bitcast(beside, self._vector.as_pointer())

    @property
    def _alignment(self) -> Any:
        return ir.Constant(_LANE, self._item_bytes)

    def _shuffle(self, a: Any, b: Any, picks: list[int]) -> Any:
        """The vector of the picked numbers, counted through a and then b."""
        return self._builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_LANE, self.lanes), picks))

    def _splat(self, number: Any, vector: Any) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        first = self._builder.insert_element(undefined, number, ir.Constant(_LANE, 0))
        zeros = ir.Constant(ir.VectorType(_LANE, vector.count), [0] * vector.count)
        return self._builder.shuffle_vector(first, undefined, zeros)

    def _function(self, name: str, result: Any, arguments: list[Any], suffix: str = "") -> Any:
        kind = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(self._builder.module, kind, f"llvm.{name}.{suffix or self._suffix}")


class Strided:
    """An array as an address and the distances between neighbours along each axis, in bytes."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._number = context.get_value_type(kind.dtype).as_pointer()
        self._data = builder.ptrtoint(array.data, _INDEX)
        self.shape = cgutils.unpack_tuple(builder, array.shape, kind.ndim)
        self._strides = cgutils.unpack_tuple(builder, array.strides, kind.ndim)

    def at(self, *place: Any) -> Any:
        """The address of a place."""
        address = self._data
        for index, stride in zip(place, self._strides, strict=True):
            address = self._builder.add(address, self._builder.mul(index, stride))
        return self._builder.inttoptr(address, self._number)


@contextmanager
def loop(builder: Any, start: Any, stop: Any) -> Iterator[Any]:
    """A loop of the compiled code; gives its counter."""
    with cgutils.for_range(builder, stop, start) as counter:
        yield counter.index


def unpack(builder: Any, numbers: Any) -> list[Any]:
    """The members of a tuple."""
    return cgutils.unpack_tuple(builder, numbers)
