"""What a training step allocates, in Python and in numpy, as Python's tracemalloc sees it."""

import tracemalloc


class TracedSteps:
    """A callback that measures the steps of every epoch after the first.

    A step here is what happens between two minibatches of one epoch: shuffling and evaluating are an epoch's. numpy
    keeps freed blocks of less than 1 KiB for itself, unseen, so a test must train on enough samples for an array
    with one byte a sample to be larger.

    Attributes:
        steps: measured so far.
        peak: bytes that were allocated at once during a step, beyond those before it; the largest of all steps.
        growth: bytes that all steps together left behind, this reporter's own few numbers included.
    """

    def __init__(self):
        self.steps = self.peak = self.growth = self._before = 0

    def on_batch_end(self, step, logs):
        if logs["epoch"] == 1:
            return
        if tracemalloc.is_tracing():
            after, peak = tracemalloc.get_traced_memory()
            self.steps += 1
            self.peak = max(self.peak, peak - self._before)
            self.growth += after - self._before
        else:
            tracemalloc.start()
        self._before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()

    def on_test_end(self, logs):
        tracemalloc.stop()
