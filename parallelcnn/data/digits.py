"""The built-in data set of digits: images of the ten digits in several handwritings, drawn stroke by stroke.

It needs no files and no network. The same seed gives the same pixels on every machine and with every version of numpy:
the random numbers are the raw output of PCG64, which numpy promises not to change, and all other operations are + - * /
and square roots, whose rounding IEEE 754 defines.

Measured test accuracy: softmax regression 89.1 %, the paper's network after three epochs 99.0 %.
"""

from itertools import chain

import numpy as np

from parallelcnn.arguments import check_integer
from parallelcnn.data.dataset import Array, Dataset
from parallelcnn.errors import DataError

_SIZE = 28

# The handwritings of each digit, one per line, with the points of their strokes in hundredths of the unit square, x to
# the right and y down. A stroke is a smooth curve. It is a loop if its last point is its first. At a corner one stroke
# ends and the next begins: a point that occurs twice is moved only once.
_HANDWRITINGS = """
0: 50,0 24,17 16,50 24,83 50,100 76,83 84,50 76,17 50,0
0: 62,2 34,12 20,45 25,85 48,100 72,80 80,42 68,10 46,5
1: 50,0 50,50 50,100
1: 30,22 42,12 54,0 / 54,0 53,50 52,100
1: 30,22 42,12 52,0 / 52,0 52,50 52,100 / 28,100 52,100 76,100
2: 20,25 36,3 66,4 78,27 58,60 20,100 / 20,100 52,97 85,100
2: 20,20 42,0 74,10 72,42 42,82 20,95 18,80 42,82 64,96 88,92
3: 20,12 48,0 75,15 68,38 42,47 / 42,47 74,56 80,80 52,100 18,88
3: 20,2 50,0 80,2 / 80,2 62,22 44,42 / 44,42 74,50 80,78 50,100 18,88
4: 62,0 38,35 12,68 / 12,68 50,68 88,68 / 62,0 63,50 62,100
4: 24,2 20,30 16,58 / 16,58 48,58 84,54 / 72,5 68,52 62,100
4: 22,0 18,32 34,52 76,42 / 80,0 76,42 70,100
5: 80,2 54,0 28,2 / 28,2 25,22 22,45 / 22,45 52,36 80,58 74,88 45,100 16,90
5: 80,2 42,6 28,32 58,48 76,72 52,98 18,90
6: 70,0 38,25 20,65 34,95 64,97 80,74 62,53 36,58 20,65
6: 52,0 30,35 22,75 46,100 74,84 68,60 44,58 26,80
7: 16,4 50,3 84,2 / 84,2 58,46 40,100
7: 16,4 50,3 84,2 / 84,2 58,46 40,100 / 32,52 54,50 76,48
7: 18,20 18,2 / 18,2 50,4 82,0 / 82,0 66,48 58,100
8: 74,14 50,0 26,18 46,46 76,74 52,100 24,78 54,44 74,14
8: 50,0 26,22 50,45 74,22 50,0 / 50,45 20,73 50,100 80,73 50,45
9: 76,22 50,0 22,20 34,46 62,44 76,22 / 76,22 74,60 66,100
9: 76,22 50,0 22,20 34,46 62,44 76,22 / 76,22 78,68 58,98 26,90
"""


def load_digits(seed: int = 0, n_train: int = 60_000, n_test: int = 10_000) -> tuple[Dataset, Dataset]:
    """Draw the built-in data set.

    Args:
        seed: integer of at least 0. Other seeds give other images.
        n_train: number of training images. A smaller set is the beginning of a larger one.
        n_test: number of test images, which use other random numbers.

    Returns:
        (train, test): images (N, 28, 28) uint8, labels (N,) int64 in [0, 10).

    Raises:
        DataError: if the seed is negative, or a number of images is not positive.
    """
    for name, value, least in (("seed", seed, 0), ("n_train", n_train, 1), ("n_test", n_test, 1)):
        check_integer(f"digits: {name}", value, least, DataError)
    train, test = np.random.SeedSequence(int(seed)).spawn(2)
    return _draw(n_train, np.random.PCG64(train)), _draw(n_test, np.random.PCG64(test))


# Number of images drawn at a time: their random numbers fit into the processor's cache.
_BLOCK = 500


def _draw(n: int, random: np.random.PCG64) -> Dataset:
    # Imported here because importing numba takes longer than reading MNIST.
    from parallelcnn.kernels.digits import draw_strokes

    images = np.empty((n, _SIZE, _SIZE), np.uint8)
    labels = np.empty(n, np.int64)
    nearest = np.empty((_SIZE, _SIZE))
    for start in range(0, n, _BLOCK):
        block = slice(start, min(start + _BLOCK, n))
        # One row of random words per image, so that images do not depend on the number of images.
        words = random.random_raw((block.stop - block.start) * _WORDS).reshape(-1, _WORDS)
        labels[block] = words[:, 0] % np.uint64(10)
        # The upper 53 bits, converted exactly to a number in [0, 1).
        uniforms = (words[:, 1:_CHOICES] >> np.uint64(11)) * 2.0**-53
        random_bytes = words[:, _CHOICES:].astype("<u8").view(np.uint8).reshape(-1, _SIZE, _SIZE)
        choice = _choose(labels[block], uniforms)
        draw_strokes(*choice, _STROKES, random_bytes, nearest, images[block])
    return Dataset(images, labels, 10, "digits")


def _choose(labels: Array, uniforms: Array) -> tuple[Array, ...]:
    """Choose the drawing parameters of each image.

    Args:
        labels: (n,), the digits.
        uniforms: (n, ...), random numbers in [0, 1). Each choice uses one column.

    Returns:
        (points, handwriting, pen radius, ink, noise), the arguments of `draw_strokes`.
    """
    n_points = _POINTS.shape[1]
    jitter = uniforms[:, : 2 * n_points].reshape(-1, n_points, 2) - 0.5
    columns = iter(uniforms[:, 2 * n_points :].T)

    def between(low: float, high: float) -> Array:
        return low + (high - low) * next(columns)

    def around_zero(reach: float) -> Array:
        """Random numbers in [-reach, reach], mostly near 0; a normal distribution would need a logarithm."""
        return reach * (next(columns) + next(columns) - 1)

    first, count = _HANDWRITINGS_OF_DIGIT[labels].T
    handwriting = first + (next(columns) * count).astype(np.int64)
    radius, ink, noise = between(0.6, 1.6), between(0.6, 1.0), between(0.0, 0.15)

    # Each (n, 1), to broadcast over the points of its image.
    tangent, slant, bend_x, bend_y, taper, shift_x, shift_y = (
        around_zero(reach)[:, None] for reach in (0.18, 0.4, 0.5, 0.3, 0.4, 3.0, 3.0)
    )
    width, height = between(12.0, 19.0)[:, None], between(16.0, 22.0)[:, None]
    stray_x, stray_y = between(-0.7, 0.7), between(-0.7, 0.7)

    x, y = np.moveaxis(_POINTS[handwriting] - 0.5 + 0.14 * jitter, 2, 0)
    # The last two points of every handwriting are a stray stroke, which is visible in one image of five.
    outside = np.where(next(columns) < 0.2, 0.0, 100.0)
    x[:, -2], x[:, -1] = stray_x + outside, stray_x + outside + around_zero(0.4)
    y[:, -2], y[:, -1] = stray_y, stray_y + around_zero(0.4)
    x, y = x * (1 + taper * y) + bend_x * y * y, y + bend_y * x * x
    x, y = width * (x + slant * y), height * y
    # Rotation by the tangent of half the angle, since the sines and cosines of libraries differ.
    cosine = (1 - tangent * tangent) / (1 + tangent * tangent)
    sine = 2 * tangent / (1 + tangent * tangent)
    x, y = cosine * x - sine * y, sine * x + cosine * y
    centre = (_SIZE - 1) / 2
    points = np.stack([x + centre + shift_x, y + centre + shift_y], axis=2)
    return points, handwriting, radius, ink, noise


def _number_the_points() -> tuple[Array, Array, Array]:
    """Convert the handwritings to arrays for the kernel.

    Returns:
        points (V, P, 2), 0 if unused; strokes (V, S, L), the indices of the points of each stroke, -1 after the last.
        The last stroke of each handwriting, from point P - 2 to P - 1, is for a stray stroke. (10, 2), the first
        handwriting and the number of handwritings of each digit.
    """
    lines = [line.split(": ") for line in _HANDWRITINGS.split("\n")[1:-1]]
    handwritings = [[stroke.split() for stroke in strokes.split(" / ")] for _, strokes in lines]
    numbers = [{point: k for k, point in enumerate(dict.fromkeys(chain(*strokes)))} for strokes in handwritings]
    n_points = max(map(len, numbers)) + 2
    n_strokes = max(map(len, handwritings)) + 1
    longest = max(len(stroke) for strokes in handwritings for stroke in strokes)
    points = np.zeros((len(handwritings), n_points, 2))
    runs = np.full((len(handwritings), n_strokes, longest), -1)
    for v, strokes in enumerate(handwritings):
        points[v, : len(numbers[v])] = [[int(number) / 100 for number in point.split(",")] for point in numbers[v]]
        for s, stroke in enumerate(strokes):
            runs[v, s, : len(stroke)] = [numbers[v][point] for point in stroke]
        runs[v, -1, :2] = n_points - 2, n_points - 1
    counts = np.bincount([int(digit) for digit, _ in lines])
    return points, runs, np.stack([np.cumsum(counts) - counts, counts], axis=1)


_POINTS, _STROKES, _HANDWRITINGS_OF_DIGIT = _number_the_points()

# The random words of an image: one for the label, then those of the choices (2 for each point, 27 columns), then words
# for the noise of 8 pixels each.
_CHOICES = 1 + 2 * _POINTS.shape[1] + 27
_WORDS = _CHOICES + _SIZE * _SIZE // 8
