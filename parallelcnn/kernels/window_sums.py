"""Sums over windows, and the transposed operation: the passes of average pooling, and of nearest upsampling.

Sums are taken along the columns first, then along the rows. So the loops are long, and a window of R x S numbers is
rounded R + S times in a row, not R * S times.
"""

from ._jit import kernel


@kernel
def sum_windows(x, window, stride, padding, divisor, row, y):
    """y[c, p, q] = (the sum of x[c] over the window at (p, q)) / divisor.

    x: (C, H, W, n), y: (C, P, Q, n). window, stride, padding: (rows, columns); a window may reach beyond the image,
    where x is zero, and contains at least one place of it. divisor: 0: the number of the window's places in the image.
    row: (W, n), overwritten.
    """
    (C, H, W, n), (_, P, Q, _) = x.shape, y.shape
    flat_x, flat_row = x.reshape(C, H, W * n), row.reshape(W * n)
    for c in range(C):
        for p in range(P):
            top = p * stride[0] - padding[0]
            first_row, last_row = max(top, 0), min(top + window[0], H)
            for j in range(W * n):
                flat_row[j] = flat_x[c, first_row, j]
            for h in range(first_row + 1, last_row):
                for j in range(W * n):
                    flat_row[j] += flat_x[c, h, j]
            for q in range(Q):
                left = q * stride[1] - padding[1]
                first, last = max(left, 0), min(left + window[1], W)
                for i in range(n):
                    y[c, p, q, i] = row[first, i]
                for w in range(first + 1, last):
                    for i in range(n):
                        y[c, p, q, i] += row[w, i]
                scale = y.dtype.type(1 / (divisor if divisor else (last_row - first_row) * (last - first)))
                for i in range(n):
                    y[c, p, q, i] *= scale


@kernel
def spread_windows(dy, window, stride, padding, divisor, row, dx):
    """The transpose of `sum_windows`: dx[c, h, w] = the sum of dy / divisor over the windows that contain (h, w).

    dy: (C, P, Q, n), dx: (C, H, W, n).
    """
    (C, H, W, n), (_, P, Q, _) = dx.shape, dy.shape
    flat_dx, flat_row = dx.reshape(C, H, W * n), row.reshape(W * n)
    for c in range(C):
        rows_done = 0  # rows of dx that are written; later windows add to them
        for p in range(P):
            top = p * stride[0] - padding[0]
            first_row, last_row = max(top, 0), min(top + window[0], H)
            done = 0
            for q in range(Q):
                left = q * stride[1] - padding[1]
                first, last = max(left, 0), min(left + window[1], W)
                scale = dy.dtype.type(1 / (divisor if divisor else (last_row - first_row) * (last - first)))
                row[done:first] = 0
                for w in range(first, min(done, last)):
                    for i in range(n):
                        row[w, i] += dy[c, p, q, i] * scale
                for w in range(max(done, first), last):
                    for i in range(n):
                        row[w, i] = dy[c, p, q, i] * scale
                done = max(done, last)
            row[done:] = 0
            dx[c, rows_done:first_row] = 0
            for h in range(first_row, min(rows_done, last_row)):
                for j in range(W * n):
                    flat_dx[c, h, j] += flat_row[j]
            for h in range(max(rows_done, first_row), last_row):
                for j in range(W * n):
                    flat_dx[c, h, j] = flat_row[j]
            rows_done = max(rows_done, last_row)
        dx[c, rows_done:] = 0
