"""The linear transforms of the Winograd convolution, along one axis of a square.

They evaluate polynomials at points, and interpolate. Their instructions are written for `Vectors`; numbers are
transformed by the same code. For four outputs and three neighbouring taps, stride 1, the points are 0, a, -a, b, -b and
infinity. With the usual a = 1 and b = 2 (Lavin & Gray), sums over 64 channels have a relative error of 1.7e-6 in
float32; with 5/8 and 3/2, 0.8e-6. Points of the form c and 1/c are good ones (S. A. Alam et al., "Winograd Convolution
for Deep Neural Networks: Efficient Point Selection", arXiv:2201.10369); these are nearly so, and exact in float32.

With stride 2, the first and the third tap see the even rows of an image only, and the second tap the odd ones. So an
output is the sum of a convolution of two taps over the even rows, with points a, -a, b, -b and infinity, and of the
odd rows times one number, which needs no transform.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

OUTPUTS = 4  # along the side of a square
WEIGHTS = 6  # different transformed weights along the side of a square
Vector = Any  # of LLVM, or a number


class Transform(NamedTuple):
    """A linear function of the vectors along one axis."""

    write: Callable[[Any, list[Vector]], list[Vector]]  # of `Vectors`, or `Numbers`
    before: int  # length of the axis
    after: int  # length of the result

    def matrix(self) -> np.ndarray:
        """(after, before)."""
        return np.transpose([self.write(Numbers, [*row]) for row in np.eye(self.before)])


class Numbers:
    """Does with numbers what `Vectors` do with vectors."""

    zero = 0.0

    @staticmethod
    def plus(total: float, *terms: float) -> float:
        return total + sum(factor * number for factor, number in zip(terms[::2], terms[1::2], strict=True))


class Interpolation:
    """The transforms of four outputs and three, or two, neighbouring taps. `*_back` are the transposed ones.

    Args:
        a, b: the points are a, -a, b, -b and infinity; for three taps, also 0, the first one.
    """

    def __init__(self, a: float, b: float, taps: int) -> None:
        self._a, self._b, self._zeros = a, b, taps - 2
        self._distances = [  # of a, and of b, from the other points, multiplied
            2 * point ** (1 + self._zeros) * (point**2 - other**2) for point, other in ((a, b), (b, a))
        ]

    def image(self, v: Any, x: list[Vector]) -> list[Vector]:
        a, b = self._a, self._b

        def at_all(x: list[Vector]) -> Vector:
            return v.plus(x[4], -(a**2) - b**2, x[2], a**2 * b**2, x[0])

        results = [at_all(x)] * self._zeros
        x = x[self._zeros :]
        for point, other in ((a, b), (b, a)):
            odd, even = (v.plus(x[i + 2], -(other**2), x[i]) for i in (1, 0))
            results += [v.plus(odd, point, even), v.plus(odd, -point, even)]
        return [*results, at_all(x)]

    def image_back(self, v: Any, y: list[Vector]) -> list[Vector]:
        """For two taps only."""
        a, b, last = self._a, self._b, y[4]
        sum_a, less_a, sum_b, less_b = self._pairs(v, y)
        return [
            v.plus(v.zero, -a * b**2, less_a, -b * a**2, less_b, a**2 * b**2, last),
            v.plus(v.zero, -(b**2), sum_a, -(a**2), sum_b),
            v.plus(v.zero, a, less_a, b, less_b, -(a**2) - b**2, last),
            v.plus(sum_a, 1, sum_b),
            last,
        ]

    def products(self, v: Any, y: list[Vector]) -> list[Vector]:
        a, b = self._a, self._b
        sum_a, less_a, sum_b, less_b = self._pairs(v, y)
        first = v.plus(sum_a, 1, sum_b)
        return [
            v.plus(y[0], 1, first) if self._zeros else first,
            v.plus(v.zero, a, less_a, b, less_b),
            v.plus(v.zero, a**2, sum_a, b**2, sum_b),
            v.plus(y[-1], a**3, less_a, b**3, less_b),
        ]

    def products_back(self, v: Any, g: list[Vector]) -> list[Vector]:
        results = g[: self._zeros]
        for point in (self._a, self._b):
            even, odd = v.plus(g[0], point**2, g[2]), v.plus(g[1], point**2, g[3])
            results += [v.plus(even, point, odd), v.plus(even, -point, odd)]
        return [*results, g[3]]

    def filters(self, v: Any, g: list[Vector]) -> list[Vector]:
        a, b = self._a, self._b
        results = [v.plus(v.zero, 1 / (a * b) ** 2, g[0])] * self._zeros
        for point, distances in zip((a, b), self._distances, strict=True):
            even = v.plus(g[0], point**2, g[2]) if self._zeros else g[0]
            even, odd = v.plus(v.zero, 1 / distances, even), v.plus(v.zero, point / distances, g[1])
            # With two taps, the distances of -a have the opposite sign, multiplied.
            same, changing = (even, odd) if self._zeros else (odd, even)
            results += [v.plus(same, 1, changing), v.plus(same, -1, changing)]
        return [*results, g[-1]]

    def filters_back(self, v: Any, y: list[Vector]) -> list[Vector]:
        a, b = self._a, self._b
        sum_a, less_a, sum_b, less_b = self._pairs(v, y)
        to_a, to_b = self._distances
        if not self._zeros:
            return [
                v.plus(v.zero, 1 / to_a, less_a, 1 / to_b, less_b),
                v.plus(y[-1], a / to_a, sum_a, b / to_b, sum_b),
            ]
        return [
            v.plus(v.zero, 1 / (a * b) ** 2, y[0], 1 / to_a, sum_a, 1 / to_b, sum_b),
            v.plus(v.zero, a / to_a, less_a, b / to_b, less_b),
            v.plus(y[-1], a**2 / to_a, sum_a, b**2 / to_b, sum_b),
        ]

    def _pairs(self, v: Any, y: list[Vector]) -> list[Vector]:
        """Sum and difference of the values at a and -a, and of those at b and -b."""
        first = self._zeros
        return [v.plus(y[i], sign, y[i + 1]) for i in (first, first + 2) for sign in (1, -1)]


_THREE = Interpolation(0.625, 1.5, taps=3)
_TWO = Interpolation(0.5, 1.0, taps=2)


def _strided_image(v: Any, x: list[Vector]) -> list[Vector]:
    return [*_TWO.image(v, x[::2]), *x[1::2]]


def _strided_image_back(v: Any, y: list[Vector]) -> list[Vector]:
    even = _TWO.image_back(v, y[:5])
    return [vector for pair in zip(even, y[5:], strict=False) for vector in pair] + even[4:]


def _strided_products(v: Any, y: list[Vector]) -> list[Vector]:
    return [v.plus(even, 1, odd) for even, odd in zip(_TWO.products(v, y[:5]), y[5:], strict=True)]


def _strided_products_back(v: Any, g: list[Vector]) -> list[Vector]:
    return [*_TWO.products_back(v, g), *g]


def _strided_filters(v: Any, g: list[Vector]) -> list[Vector]:
    return [*_TWO.filters(v, g[::2]), g[1]]


def _strided_filters_back(v: Any, y: list[Vector]) -> list[Vector]:
    first, last = _TWO.filters_back(v, y[:5])
    return [first, y[5], last]


class Transforms(NamedTuple):
    """The transforms of a stride: G, B^T and A^T of `winograd`, and their transposed matrices."""

    filters: Transform
    filters_back: Transform
    image: Transform
    image_back: Transform | None
    products: Transform
    products_back: Transform


SIDES = {1: 6, 2: 9}  # places along the side of a square, by stride
TRANSFORMS = {
    1: Transforms(
        Transform(_THREE.filters, 3, 6),
        Transform(_THREE.filters_back, 6, 3),
        Transform(_THREE.image, 6, 6),
        None,
        Transform(_THREE.products, 6, OUTPUTS),
        Transform(_THREE.products_back, OUTPUTS, 6),
    ),
    2: Transforms(
        Transform(_strided_filters, 3, WEIGHTS),
        Transform(_strided_filters_back, WEIGHTS, 3),
        Transform(_strided_image, 9, 9),
        Transform(_strided_image_back, 9, 9),
        Transform(_strided_products, 9, OUTPUTS),
        Transform(_strided_products_back, OUTPUTS, 9),
    ),
}
