"""Programs that are ranks themselves and start the command, or train in a process that they have forked."""

import json
import sys

import launch
import pytest

pytestmark = pytest.mark.mpi

_IS_A_RANK = """
import json, multiprocessing, os, subprocess, sys
from parallelcnn.comm import mpi_library
from parallelcnn.resilience.world import world
from parallelcnn.errors import LaunchError

def train():
    try:
        return world().size
    except LaunchError as error:
        return str(error)

def train_in_a_process(close_fds):
    child = [sys.executable, "-c", "import sys; exec(sys.argv[1]); print(train())", sys.argv[1], "child"]
    ran = subprocess.run(child, capture_output=True, text=True, timeout=60, close_fds=close_fds)
    return ran.stdout + ran.stderr

if "child" not in sys.argv:
    found = {"before MPI": train_in_a_process(True)}
    from mpi4py import MPI
    assert MPI.COMM_WORLD.size == 2
    found["after MPI"] = train_in_a_process(True)
    found["inherits after MPI"] = train_in_a_process(False)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found["forked"] = pool.apply(train)
    assert train() == 2
    command = [sys.executable, "-m", "parallelcnn", "train", "--data", "nowhere"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found["command"] = ran.stderr
    assert ran.returncode == 2, ran.stderr
    everyone = MPI.COMM_WORLD.gather({"library": mpi_library(), **found})
    if everyone:
        print(json.dumps(everyone))
"""


def test_a_process_that_a_rank_has_started_is_told_how_to_train_alone():
    ran = launch.run_ranks(2, ["-c", _IS_A_RANK, _IS_A_RANK], limit=120)
    assert ran.code == 0, ran.err
    for found in json.loads(ran.out.splitlines()[-1]):
        mpich = found.pop("library").startswith("MPICH")
        if not mpich:  # nobody had been the rank before; with MPICH only who has the launcher's connection can be
            assert found.pop("before MPI") == "2\n"
        variable = "PMI_SIZE" if mpich else "OMPI_COMM_WORLD_SIZE"
        for how, said in found.items():
            assert f"{variable}=2 says that this is one of 2 ranks, but another program is that rank already" in said, (
                how
            )
            assert f"To train in this process alone: unset {variable}" in said, how
            assert said.count("\n") <= 1, said


def test_of_two_programs_that_a_script_starts_as_the_same_rank_the_second_is_told_so():
    """MPICH aborts; Open MPI lets both of them be it."""
    train = f"{sys.executable} -c 'import parallelcnn as pc; print(pc.world().size)'"
    ran = launch.run([launch.mpiexec(), "-n", "2", "bash", "-c", f"{train}; {train}"])
    assert ran.out.count("2") >= 2, ran.err
    assert "PMI_Init" not in ran.err
    assert ran.out.count("2") == 4 or "is that rank already (the launcher's connection, PMI_FD=" in ran.err


def test_without_these_variables_it_trains_alone():
    child = "import parallelcnn as pc; print(pc.world().size)"
    script = f"""
import os, subprocess, sys
from mpi4py import MPI
for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK"):
    os.environ.pop(name, None)
assert subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True).stdout == "1\\n"
"""
    assert launch.run([launch.mpiexec(), "-n", "2", sys.executable, "-c", script]).code == 0


def test_a_launcher_that_a_rank_starts_starts_ranks():
    """Not every MPI can: Open MPI's then refuses. But what it starts, is no rank that started itself."""
    inner = [launch.mpiexec(), "-n", "2", sys.executable, "-c", "import parallelcnn as pc; print(pc.world().size)"]
    script = f"from mpi4py import MPI; import subprocess; print(subprocess.run({inner!r}, text=True).returncode)"
    ran = launch.run_ranks(1, ["-c", script])
    assert "is that rank already" not in ran.err
    assert ran.out.count("2") == 2 or launch.is_open_mpi()
