"""One layer, recorded on a tape of its own."""

from types import SimpleNamespace

import numpy as np

from parallelcnn.parameters import ArrayLayout
from parallelcnn.tape import LayerArrays, Recordable, Tape, aligned, plan_tape


def record(layer, input_shape, n, dtype=np.float64, needs_dx=True, shared=False, bfloat16=False):
    """A layer's tape with the arrays around it, all filled with sevens."""
    layout = ArrayLayout.of([layer.parameters(input_shape)])
    flat_params, flat_grads = np.full(layout.size, 7, dtype), np.full(layout.trained.size, 7, dtype)
    (params,), (grads,) = layout.views(flat_params), layout.trained.views(flat_grads)
    buffers = {name: np.full(one.shape, one.initial, dtype) for name, one in layer.buffers(input_shape).items()}
    statistics = {name: np.full_like(array, 7) for name, array in buffers.items()}
    arrays = LayerArrays(params, grads, buffers, statistics)
    shapes = (input_shape, layer.output_shape(input_shape))
    what = Recordable((layer,), (0,), shapes, (arrays,), -1 if needs_dx else 0, np.dtype(dtype), bfloat16)
    plan = plan_tape(what, n, training=True, shared=shared)
    memory = aligned(plan.size)
    if bfloat16:
        memory[...] = 255  # NaN, also in pairs of bfloat16
    else:
        memory[: plan.size // 8 * 8].view(np.float64)[...] = 7
    tape = Tape(what, n, plan, memory, training=True)
    return SimpleNamespace(
        tape=tape,
        params=params,
        grads=grads,
        buffers=buffers,
        statistics=statistics,
        flat_params=flat_params,
        flat_grads=flat_grads,
    )


def call_all(calls):
    for call in calls:
        call()


def run_layer(layer, input_shape, n, dtype, rng, x=None, wants_dx=True, bfloat16=False, shared=False):
    """Run a layer forwards and backwards over random arrays; what it should write holds garbage before."""
    layer = record(layer, input_shape, n, dtype, wants_dx, shared, bfloat16)
    tape = layer.tape
    layer.flat_params[...] = rng.normal(size=layer.flat_params.size)
    tape.x[...] = rng.normal(size=(*input_shape, n)) if x is None else x
    call_all(tape.forward)
    dy = rng.normal(size=tape.y.shape).astype(dtype)
    tape.dy[...] = dy
    y = tape.y.copy()
    call_all(tape.backward)
    return SimpleNamespace(x=tape.x, y=y, params=layer.params, grads=layer.grads, dy=dy, dx=tape.dx)
