"""Open MPI's launcher, seen from a rank: what ends a job when MPI cannot, or does not in time."""

import contextlib
import os
import signal
import time
from pathlib import Path

_SECONDS_TO_END = 2.0  # after it was told to [s]


def tell_to_end_the_job() -> None:
    """Have Open MPI's launcher kill all ranks, this one too, and leave with exit code 1; returns if it does not.

    Under --with-ft ulfm (5.0.11) MPI's Abort takes it seconds or is waited for in vain, and a rank that leaves with a
    code of its own is not enough. What it never fails to do is what it does for SIGTERM.
    """
    with contextlib.suppress(OSError):
        os.kill(_launcher(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_END)


def _launcher() -> int:
    """The process that started this one, directly or by a script; OSError if it is not Open MPI's."""
    process = os.getpid()
    while True:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{process}/comm").read_text().strip() in ("prterun", "prted", "prte"):
            return process
