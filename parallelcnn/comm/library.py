"""The MPI library."""

import sys
from typing import Any

from parallelcnn.comm.messages import first_line


def load_mpi(*, initialise: bool = True) -> Any:
    """The module MPI of mpi4py.

    Args:
        initialise: let mpi4py initialise and finalise MPI, if it has not been loaded before.

    Raises:
        ImportError, RuntimeError: if mpi4py or the MPI library cannot be loaded.
    """
    import mpi4py

    if not initialise and "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize = mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI


def mpi_library() -> str:
    """One line about the MPI library, or why there is none."""
    try:
        version = load_mpi().Get_library_version()
    except (ImportError, RuntimeError) as error:
        return f"none ({first_line(error)})"
    return " ".join(version.strip("\0 \n").splitlines()[0].rstrip(",").split())
