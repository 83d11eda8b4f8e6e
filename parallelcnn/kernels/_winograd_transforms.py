"""The linear transforms of the Winograd convolution, along one axis of a square.

They evaluate polynomials at points, and interpolate. Their instructions are written for `Vectors`; numbers are
transformed by the same code. With stride 1, the points are 0, a, -a, b, -b and infinity, both for four outputs and
three neighbouring taps and for two outputs and five taps. With the usual a = 1 and b = 2 (Lavin & Gray), sums over 64
channels have a relative error in float32 of 1.7e-6 with three taps; with 5/8 and 3/2, 0.8e-6 with three taps and 1.0e-6
with five. Points of the form c and 1/c are good ones (S. A. Alam et al., "Winograd Convolution for Deep Neural
Networks: Efficient Point Selection", arXiv:2201.10369); these are nearly so, and exact in float32.

With stride 2, the first and the third tap see the even rows of an image only, and the second tap the odd ones. So an
output is the sum of a convolution of two taps over the even rows, with points a, -a, b, -b and infinity, and of the
odd rows times one number, which needs no transform.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

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
    """The transforms of some outputs and neighbouring taps. `*_back` are the transposed ones.

    Args:
        a, b: the points are a, -a, b, -b and infinity; if outputs + taps = 7, also 0, the first one.
    """

    def __init__(self, a: float, b: float, outputs: int, taps: int) -> None:
        self._a, self._b, self.outputs, self.taps = a, b, outputs, taps
        self._zeros = outputs + taps - 6
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
        """Only if 0 is not one of the points."""
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
        results = [v.plus(y[0], 1, first) if self._zeros else first]
        for power in range(1, self.outputs):
            pair = (less_a, less_b) if power % 2 else (sum_a, sum_b)
            start = y[-1] if power == self.outputs - 1 else v.zero
            results.append(v.plus(start, a**power, pair[0], b**power, pair[1]))
        return results

    def products_back(self, v: Any, g: list[Vector]) -> list[Vector]:
        results = g[: self._zeros]
        for point in (self._a, self._b):
            even, odd = _even_and_odd(v, g, point)
            results += [v.plus(even, point, odd), v.plus(even, -point, odd)]
        return [*results, g[-1]]

    def filters(self, v: Any, g: list[Vector]) -> list[Vector]:
        a, b = self._a, self._b
        results = [v.plus(v.zero, 1 / (a * b) ** 2, g[0])] * self._zeros
        for point, distances in zip((a, b), self._distances, strict=True):
            even, odd = _even_and_odd(v, g, point)
            even, odd = v.plus(v.zero, 1 / distances, even), v.plus(v.zero, point / distances, odd)
            # Without the point 0, the distances of -a have the opposite sign, multiplied.
            same, changing = (even, odd) if self._zeros else (odd, even)
            results += [v.plus(same, 1, changing), v.plus(same, -1, changing)]
        return [*results, g[-1]]

    def filters_back(self, v: Any, y: list[Vector]) -> list[Vector]:
        a, b = self._a, self._b
        to_a, to_b = self._distances
        sum_a, less_a, sum_b, less_b = self._pairs(v, y)
        results = []
        for power in range(self.taps):
            # Without the point 0, the distances of -a and -b have the opposite sign: even powers take differences.
            pair = (sum_a, sum_b) if power % 2 != self._zeros else (less_a, less_b)
            start = y[-1] if power == self.taps - 1 else v.zero
            at_zero = (1 / (a * b) ** 2, y[0]) if power == 0 and self._zeros else ()
            results.append(v.plus(start, *at_zero, a**power / to_a, pair[0], b**power / to_b, pair[1]))
        return results

    def _pairs(self, v: Any, y: list[Vector]) -> list[Vector]:
        """Sum and difference of the values at a and -a, and of those at b and -b."""
        first = self._zeros
        return [v.plus(y[i], sign, y[i + 1]) for i in (first, first + 2) for sign in (1, -1)]


def _even_and_odd(v: Any, g: list[Vector], point: float) -> tuple[Vector, Vector]:
    """The even powers of a polynomial at the point, and the odd ones divided by the point."""
    even, odd = (
        v.plus(g[first], *(term for power in range(2, len(g) - first, 2) for term in (point**power, g[first + power])))
        for first in (0, 1)
    )
    return even, odd


_FIVE = Interpolation(0.625, 1.5, outputs=2, taps=5)
_THREE = Interpolation(0.625, 1.5, outputs=4, taps=3)
_TWO = Interpolation(0.5, 1.0, outputs=4, taps=2)


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
    """The transforms of one size of windows and one stride: G, B^T and A^T of `winograd`, and their transposes."""

    filters: Transform
    filters_back: Transform
    image: Transform
    image_back: Transform | None
    products: Transform
    products_back: Transform

    @property
    def outputs(self) -> int:
        """Along the side of a square."""
        return self.products.after

    @property
    def side(self) -> int:
        """Places along the side of a square."""
        return self.image.before


def _neighbouring(by: Interpolation) -> Transforms:
    return Transforms(
        Transform(by.filters, by.taps, WEIGHTS),
        Transform(by.filters_back, WEIGHTS, by.taps),
        Transform(by.image, WEIGHTS, WEIGHTS),
        None,
        Transform(by.products, WEIGHTS, by.outputs),
        Transform(by.products_back, by.outputs, WEIGHTS),
    )


_STRIDED = Transforms(
    Transform(_strided_filters, 3, WEIGHTS),
    Transform(_strided_filters_back, WEIGHTS, 3),
    Transform(_strided_image, 9, 9),
    Transform(_strided_image_back, 9, 9),
    Transform(_strided_products, 9, _TWO.outputs),
    Transform(_strided_products_back, _TWO.outputs, 9),
)
TRANSFORMS = {(5, 1): _neighbouring(_FIVE), (3, 1): _neighbouring(_THREE), (3, 2): _STRIDED}  # by taps and stride
