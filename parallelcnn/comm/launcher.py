"""Open MPI's launcher, seen from a rank: what ends a job when MPI cannot, or does not in time."""

import contextlib
import os
import signal
import time
from pathlib import Path

_SECONDS_TO_OBEY = 2.0


def tell_to_end_the_job() -> None:
    """Have Open MPI's launcher kill all ranks, this one too, and leave with exit code 1; returns if it cannot be had.

    Under --with-ft ulfm (5.0.11) MPI's Abort takes it seconds or is waited for in vain, and a rank that leaves with a
    code of its own is not enough. What it never fails to do is what it does for SIGTERM.
    """
    with contextlib.suppress(OSError):
        os.kill(launcher(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_OBEY)


def launcher() -> int:
    """The mpirun that started this process, directly or by a script, and no other job; OSError if it is not to be seen:
    another launcher's, on another machine, outside of this container.
    """
    job = os.environ.get("PMIX_NAMESPACE", "").partition("@")[0]  # prterun-HOST-PROCESS
    process = os.getpid()
    while True:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        program = Path(f"/proc/{process}/comm").read_text().strip()
        if program == "prterun" and job.endswith(f"-{process}"):
            return process
