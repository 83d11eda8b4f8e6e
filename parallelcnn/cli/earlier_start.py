"""Earlier starts of the same command: continue the run that one has begun, and wait until it has ended."""

import time
from dataclasses import replace
from pathlib import Path

from parallelcnn.cli.output import say
from parallelcnn.cli.run_directory import DirectoryInUseError, RunDirectory
from parallelcnn.comm import Transport, run_together
from parallelcnn.resources import number_in
from parallelcnn.training.config import TrainConfig

LONGEST_WAIT = 30.0  # for an earlier start to end [s]
_POLL_EVERY = 0.1  # [s]


def continued(options: TrainConfig, comm: Transport) -> TrainConfig | None:
    """The options with which to continue the run that an earlier start of this SLURM job has begun. None: SLURM has not
    queued the job again, or there is no such run.

    Collective: every rank must call it.
    """

    def find() -> TrainConfig | None:
        own = RunDirectory.begun_by_this_job(Path(options.out)) if options.out and _is_queued_again() else None
        if own is None:
            return None
        has_checkpoints = any(options.build_checkpoints(own).files())
        return replace(options, out=str(own), resume="auto" if has_checkpoints else options.resume)

    return comm.allgather(run_together(comm, lambda: find() if comm.rank == 0 else None))[0]


def take_directory(options: TrainConfig, comm: Transport, *, continues_own_run: bool) -> RunDirectory | None:
    """The run directory, on rank 0. If an earlier start of this run is still writing there, wait until it has ended.

    Collective: every rank must call it.

    Args:
        continues_own_run: whether the run is that of an earlier start of this SLURM job.

    Raises:
        DirectoryInUseError: if another run writes there.
    """
    started_before = options.resume is not None or bool(options.out and _is_queued_again())
    give_up_at = time.monotonic() + (LONGEST_WAIT if started_before else 0.0)
    announce = comm.rank == 0

    def take() -> RunDirectory | None:
        try:
            return RunDirectory(options.out) if comm.rank == 0 else None
        except DirectoryInUseError:
            if time.monotonic() < give_up_at:
                return None
            if not continues_own_run:
                raise
            # The earlier start is over, but the file system still holds the lock of its node, which has failed.
            RunDirectory.forget_lock(Path(str(options.out)))
            return RunDirectory(options.out)

    # Many short collectives: in one long one the watchdog of the other ranks would take rank 0 for a hung rank.
    while True:
        directory = run_together(comm, take)
        if comm.allgather(directory is not None)[0]:
            return directory
        if announce:
            say(f"waiting for the run that still writes to {options.out}")
            announce = False
        time.sleep(_POLL_EVERY)


def _is_queued_again() -> bool:
    return bool(number_in("SLURM_RESTART_COUNT"))
