"""Load and describe the MPI library."""

import sys
from typing import Any

from parallelcnn.comm.messages import first_line


def load_mpi(*, initialise: bool = True) -> Any:
    """Load the module mpi4py.MPI.

    Args:
        initialise: whether mpi4py initialises and finalises MPI, if the module is not loaded yet.

    Raises:
        ImportError, RuntimeError: if mpi4py or the MPI library cannot be loaded.
    """
    import mpi4py

    if not initialise and "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize = mpi4py.rc.finalize = False
    from mpi4py import MPI

    return MPI


def mpi_library() -> str:
    """One line about the MPI library, or the reason why it cannot be loaded."""
    try:
        version = load_mpi().Get_library_version()
    except (ImportError, RuntimeError) as error:
        return f"none ({first_line(error)})"
    return " ".join(version.strip("\0 \n").splitlines()[0].rstrip(",").split())
