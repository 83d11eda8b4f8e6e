"""Convolution as streams: a tap of the filter is one long row of the image, shifted.

Rows. With the samples innermost, an image row is W * n contiguous numbers, and for stride 1 and no padding tap (r, s)
of output row p is the part of input row p + r that begins at s * n. Any other stride or padding is brought into that
form once by `arrange`: zeros are put around the image, and each row is parted into `column_stride` phases (columns
0, 2, 4, ... then 1, 3, 5, ... for stride 2), so that a tap again is one contiguous piece:

    rows    (C, height, column_stride * phase), phase = columns per phase * n
    tap s   begins at  (s mod column_stride) * phase + (s div column_stride) * n
    tap r   of output row p lies in row  p * row_stride + r

so that, for j over the Q * n numbers of an output row,

    y[k, p, j] = bias[k] + sum over c, r, s of  weight[k, c, r, s] * rows[c, p * row_stride + r, start(s) + j]

`spare` are output rows that nobody reads: they stand in for the missing partner where a pass writes several rows and
fewer are left, so that no kernel needs a second copy of its loop.

Rates in this file were measured for 6 -> 16 channels of 13 x 13 (12 x 12 where rows go in pairs), filters of 3 x 3 and
n = 50, on one core whose float32 matrix product of 512 x 512 runs at 145 GFLOP/s.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from ._jit import kernel

# An unsigned index needs no check for "counted from the end", which would keep the compiler from vectorising.
_unsigned = np.uint64


@kernel
def arrange(x, top, left, column_stride, rows):
    """rows[c, h, phase, i] = x[c, h - top, i * column_stride + phase - left], zero outside the image.

    x: (C, H, W, n), rows: (C, height, column_stride, columns per phase, n).
    """
    C, H, W, _ = x.shape
    _, height, _, columns, _ = rows.shape
    for c in range(C):
        for h in range(height):
            for phase in range(column_stride):
                for i in range(columns):
                    w = i * column_stride + phase - left
                    if 0 <= h - top < H and 0 <= w < W:
                        rows[c, h, phase, i] = x[c, h - top, w]
                    else:
                        rows[c, h, phase, i] = 0


@kernel
def restore(drows, top, left, column_stride, dx):
    """The reverse of `arrange`: dx[c, h, w] is the number that `arrange` would have put x[c, h, w] to."""
    C, H, W, _ = dx.shape
    _, height, _, columns, _ = drows.shape
    for c in range(C):
        for h in range(H):
            for w in range(W):
                i, phase = divmod(w + left, column_stride)
                if h + top < height and i < columns:
                    dx[c, h, w] = drows[c, h + top, phase, i]
                else:
                    dx[c, h, w] = 0


@cache
def forward_kernel(filter_rows: int, filter_columns: int, row_stride: int, column_stride: int) -> Callable[..., None]:
    """The forward kernel for one size of filter and one stride.

    A pass computes two channels of two output rows, which share what is loaded: input row r of the pass is tap r of the
    first output row and tap r - row_stride of the second (88 GFLOP/s; with one output row
    at a time 71). Sizes and strides are compile-time constants, so that the compiler unrolls the taps and keeps the
    four sums in registers. It unrolls nine taps, but not 25 (8 GFLOP/s): a larger filter takes one row at a time.

    The kernel reads one row_stride further down than the windows of a single output row reach, see `rows_needed`.
    """
    R, S = filter_rows, filter_columns
    rows_per_pass = R if R * S <= 9 else 1

    @kernel
    def conv2d_forward(rows, weight, bias, phase, n, spare, y):
        """rows: (C, height, length), weight: (K, C, R, S), bias: (K,) or (0,), spare: (3, Q * n), y: (K, P, Q * n)."""
        K, P, length = y.shape
        C = weight.shape[1]
        zero = y.dtype.type(0)
        for k0 in range(0, K, 2):
            k1 = min(k0 + 1, K - 1)
            for pair in range(0, P, 2):
                p = max(min(pair, P - 2), 0)  # of an odd number of rows the last but one is computed twice
                y00 = y[k0, p]
                y01 = y[k0, p + 1] if P > 1 else spare[0]
                y10 = y[k1, p] if k1 > k0 else spare[1]
                y11 = y[k1, p + 1] if k1 > k0 and P > 1 else spare[2]
                y00[:] = bias[k0] if bias.size else zero
                y01[:] = bias[k0] if bias.size else zero
                y10[:] = bias[k1] if bias.size else zero
                y11[:] = bias[k1] if bias.size else zero
                for c in range(C):
                    for r0 in range(0, R, rows_per_pass):
                        for j in range(_unsigned(length)):
                            sum00, sum01, sum10, sum11 = y00[j], y01[j], y10[j], y11[j]
                            for r in range(rows_per_pass + row_stride):
                                for s in range(S):
                                    h = _unsigned(p * row_stride + r0 + r)
                                    start = _unsigned((s % column_stride) * phase + (s // column_stride) * n)
                                    v = rows[c, h, start + j]
                                    if r < rows_per_pass:
                                        sum00 += weight[k0, c, _unsigned(r0 + r), s] * v
                                        sum10 += weight[k1, c, _unsigned(r0 + r), s] * v
                                    if r >= row_stride:
                                        sum01 += weight[k0, c, _unsigned(r0 + r - row_stride), s] * v
                                        sum11 += weight[k1, c, _unsigned(r0 + r - row_stride), s] * v
                            y00[j], y01[j], y10[j], y11[j] = sum00, sum01, sum10, sum11

    return conv2d_forward


def rows_needed(outputs: int, window: int, stride: int) -> int:
    """How many input rows the kernels read for so many output rows: those of at least two."""
    return (max(outputs, 2) - 1) * stride + window


@kernel
def conv2d_backward_params(rows, dy, row_stride, column_stride, phase, n, dweight):
    """dweight[k, c, r, s] = sum over p, j of  dy[k, p, j] * rows[c, p * row_stride + r, start(s) + j].

    Four channels times three taps a pass: seven loaded rows serve twelve sums (77 GFLOP/s; two times
    three: 58). Where fewer are left the last is computed again, and written twice with one value.
    """
    K, P, length = dy.shape
    _, C, R, S = dweight.shape
    zero = dweight.dtype.type(0)
    last_k, last_tap = K - 1, R * S - 1
    for k0 in range(0, K, 4):
        k1, k2, k3 = min(k0 + 1, last_k), min(k0 + 2, last_k), min(k0 + 3, last_k)
        for c in range(C):
            for tap in range(0, R * S, 3):
                r0, s0 = divmod(tap, S)
                r1, s1 = divmod(min(tap + 1, last_tap), S)
                r2, s2 = divmod(min(tap + 2, last_tap), S)
                start0 = (s0 % column_stride) * phase + (s0 // column_stride) * n
                start1 = (s1 % column_stride) * phase + (s1 // column_stride) * n
                start2 = (s2 % column_stride) * phase + (s2 // column_stride) * n
                sum00 = sum01 = sum02 = sum10 = sum11 = sum12 = zero
                sum20 = sum21 = sum22 = sum30 = sum31 = sum32 = zero
                for p in range(P):
                    dy0, dy1, dy2, dy3 = dy[k0, p], dy[k1, p], dy[k2, p], dy[k3, p]
                    x0 = rows[c, p * row_stride + r0, start0 : start0 + length]
                    x1 = rows[c, p * row_stride + r1, start1 : start1 + length]
                    x2 = rows[c, p * row_stride + r2, start2 : start2 + length]
                    for j in range(_unsigned(length)):
                        sum00 += dy0[j] * x0[j]
                        sum01 += dy0[j] * x1[j]
                        sum02 += dy0[j] * x2[j]
                        sum10 += dy1[j] * x0[j]
                        sum11 += dy1[j] * x1[j]
                        sum12 += dy1[j] * x2[j]
                        sum20 += dy2[j] * x0[j]
                        sum21 += dy2[j] * x1[j]
                        sum22 += dy2[j] * x2[j]
                        sum30 += dy3[j] * x0[j]
                        sum31 += dy3[j] * x1[j]
                        sum32 += dy3[j] * x2[j]
                dweight[k0, c, r0, s0], dweight[k0, c, r1, s1], dweight[k0, c, r2, s2] = sum00, sum01, sum02
                dweight[k1, c, r0, s0], dweight[k1, c, r1, s1], dweight[k1, c, r2, s2] = sum10, sum11, sum12
                dweight[k2, c, r0, s0], dweight[k2, c, r1, s1], dweight[k2, c, r2, s2] = sum20, sum21, sum22
                dweight[k3, c, r0, s0], dweight[k3, c, r1, s1], dweight[k3, c, r2, s2] = sum30, sum31, sum32


@kernel
def conv2d_backward_params_3x3(rows, dy, row_stride, column_stride, phase, n, dweight):
    """The same for filters of 3 x 3, the commonest: two channels times all nine taps a pass, eleven loaded rows for
    eighteen sums (92 GFLOP/s instead of 77, which is 3 % of a step of the paper's network).
    """
    K, P, length = dy.shape
    C = dweight.shape[1]
    zero = dweight.dtype.type(0)
    start1 = (1 % column_stride) * phase + (1 // column_stride) * n
    start2 = (2 % column_stride) * phase + (2 // column_stride) * n
    for k0 in range(0, K, 2):
        k1 = min(k0 + 1, K - 1)
        for c in range(C):
            a00 = a01 = a02 = a10 = a11 = a12 = a20 = a21 = a22 = zero
            b00 = b01 = b02 = b10 = b11 = b12 = b20 = b21 = b22 = zero
            for p in range(P):
                dya, dyb = dy[k0, p], dy[k1, p]
                row0 = rows[c, p * row_stride]
                row1 = rows[c, p * row_stride + 1]
                row2 = rows[c, p * row_stride + 2]
                x00, x10, x20 = row0[:length], row1[:length], row2[:length]
                x01, x02 = row0[start1 : start1 + length], row0[start2 : start2 + length]
                x11, x12 = row1[start1 : start1 + length], row1[start2 : start2 + length]
                x21, x22 = row2[start1 : start1 + length], row2[start2 : start2 + length]
                for j in range(_unsigned(length)):
                    u, v = dya[j], dyb[j]
                    a00 += u * x00[j]
                    a01 += u * x01[j]
                    a02 += u * x02[j]
                    a10 += u * x10[j]
                    a11 += u * x11[j]
                    a12 += u * x12[j]
                    a20 += u * x20[j]
                    a21 += u * x21[j]
                    a22 += u * x22[j]
                    b00 += v * x00[j]
                    b01 += v * x01[j]
                    b02 += v * x02[j]
                    b10 += v * x10[j]
                    b11 += v * x11[j]
                    b12 += v * x12[j]
                    b20 += v * x20[j]
                    b21 += v * x21[j]
                    b22 += v * x22[j]
            dweight[k0, c, 0, 0], dweight[k0, c, 0, 1], dweight[k0, c, 0, 2] = a00, a01, a02
            dweight[k0, c, 1, 0], dweight[k0, c, 1, 1], dweight[k0, c, 1, 2] = a10, a11, a12
            dweight[k0, c, 2, 0], dweight[k0, c, 2, 1], dweight[k0, c, 2, 2] = a20, a21, a22
            dweight[k1, c, 0, 0], dweight[k1, c, 0, 1], dweight[k1, c, 0, 2] = b00, b01, b02
            dweight[k1, c, 1, 0], dweight[k1, c, 1, 1], dweight[k1, c, 1, 2] = b10, b11, b12
            dweight[k1, c, 2, 0], dweight[k1, c, 2, 1], dweight[k1, c, 2, 2] = b20, b21, b22


@kernel
def conv2d_backward_bias(dy, dbias):
    """dbias[k] = sum over p, j of dy[k, p, j]; in a quarter of the time that numpy's sum takes (9 us instead of 37)."""
    K, P, length = dy.shape
    for k in range(K):
        total = dbias.dtype.type(0)
        for p in range(P):
            for j in range(length):
                total += dy[k, p, j]
        dbias[k] = total


@kernel
def conv2d_backward_input(dy, weight, row_stride, column_stride, phase, n, spare, drows):
    """drows[c, p * row_stride + r, start(s) + j] += sum over k of  weight[k, c, r, s] * dy[k, p, j].

    Four channels times three filter rows a pass: four loaded rows of dy serve twelve products (72 GFLOP/s; two image
    channels instead of three filter rows: 51). A channel that does not exist counts with weight zero.
    """
    K, P, length = dy.shape
    _, C, R, S = weight.shape
    zero = weight.dtype.type(0)
    drows[:] = 0
    for p in range(P):
        for c in range(C):
            for k in range(0, K, 4):
                has1, has2, has3 = k + 1 < K, k + 2 < K, k + 3 < K
                k1, k2, k3 = min(k + 1, K - 1), min(k + 2, K - 1), min(k + 3, K - 1)
                dy0, dy1, dy2, dy3 = dy[k, p], dy[k1, p], dy[k2, p], dy[k3, p]
                for r0 in range(0, R, 3):
                    h = p * row_stride + r0
                    r1, r2 = min(r0 + 1, R - 1), min(r0 + 2, R - 1)
                    for s in range(S):
                        start = (s % column_stride) * phase + (s // column_stride) * n
                        end = start + length
                        dx0 = drows[c, h, start:end]
                        dx1 = drows[c, h + 1, start:end] if r0 + 1 < R else spare[0]
                        dx2 = drows[c, h + 2, start:end] if r0 + 2 < R else spare[1]
                        u0 = weight[k, c, r0, s]
                        u1 = weight[k1, c, r0, s] if has1 else zero
                        u2 = weight[k2, c, r0, s] if has2 else zero
                        u3 = weight[k3, c, r0, s] if has3 else zero
                        v0 = weight[k, c, r1, s]
                        v1 = weight[k1, c, r1, s] if has1 else zero
                        v2 = weight[k2, c, r1, s] if has2 else zero
                        v3 = weight[k3, c, r1, s] if has3 else zero
                        w0 = weight[k, c, r2, s]
                        w1 = weight[k1, c, r2, s] if has1 else zero
                        w2 = weight[k2, c, r2, s] if has2 else zero
                        w3 = weight[k3, c, r2, s] if has3 else zero
                        for j in range(length):
                            d0, d1, d2, d3 = dy0[j], dy1[j], dy2[j], dy3[j]
                            dx0[j] += u0 * d0 + u1 * d1 + u2 * d2 + u3 * d3
                            dx1[j] += v0 * d0 + v1 * d1 + v2 * d2 + v3 * d3
                            dx2[j] += w0 * d0 + w1 * d1 + w2 * d2 + w3 * d3
