"""`slurm/train.sbatch` on a real SLURM: two emulated nodes, see `tests/slurm/cluster_up.sh`."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DAEMONS_PATH = f"{os.environ['PATH']}:/usr/sbin"
MODEL_FILE = "model.npz"


def reason_to_skip() -> str | None:
    """Why no cluster can be brought up here, or None."""
    for program in ("sbatch", "slurmctld", "slurmd", "munged"):
        if shutil.which(program, path=DAEMONS_PATH) is None:
            return f"{program} is not installed (Debian: apt install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return "SLURM needs a host name that resolves"
    if not (BIN / "mpirun").exists():
        return f"no MPI runtime in {BIN}"
    return None


class Cluster:
    """An emulated cluster: where it lives, and how to run a command on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        outer = ("SLURM_", "SBATCH_", "SRUN_", "PMI", "OMPI_COMM_")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(outer)}
        self.env |= {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{BIN}:{DAEMONS_PATH}",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            # A user may have it from a workstation; it must not gather a job's ranks on one node.
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        }
        # The job script chooses these, whatever the tests themselves run with.
        self.env.pop("NUMBA_CACHE_DIR", None)

    def script(self, name: str) -> None:
        """Run `cluster_up.sh` or `cluster_down.sh`: into a file, as daemons hold on to a pipe."""
        command = ["bash", str(ROOT / "tests" / "slurm" / name), str(self.folder)]
        with tempfile.TemporaryFile("w+") as output:
            try:
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=60,
                    check=True,
                )
            except subprocess.SubprocessError as error:
                output.seek(0)
                pytest.fail(f"{error}\n{output.read()}\n{self.logs()}")

    def logs(self) -> str:
        """The end of every daemon's log, for failing tests."""
        logs = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    # Not tmp_path, which is too long for the sockets in it.
    with tempfile.TemporaryDirectory(prefix="parallelcnn-slurm-") as folder:
        # munged wants a socket that every user can reach.
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder) / "cluster")
        try:
            cluster.script("cluster_up.sh")
            yield cluster
        finally:
            cluster.script("cluster_down.sh")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small IDX files, whose images a network can tell apart."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, n in (("train", 512), ("t10k", 256)):
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        images = rng.integers(0, 50, (n, 28, 28), dtype=np.uint8)
        images[np.arange(n), 2 * labels + 4] = 255
        header = np.array([0x803, n, 28, 28], ">u4").tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = np.array([0x801, n], ">u4").tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


class Job:
    """A finished job: its exit code, what it wrote, and all that helps to find out why."""

    def __init__(self, cluster: Cluster, data: Path, folder: Path, *sbatch: str, launcher: str = "mpirun") -> None:
        self.out = folder / "out"
        job_log = folder / "job.log"
        command = ["sbatch", "--wait", f"--output={job_log}", *sbatch]
        command += [str(ROOT / "slurm" / "train.sbatch"), "--data", str(data), "--epochs", "1"]
        command += ["--out", str(self.out)]
        try:
            finished = subprocess.run(
                command,
                env=cluster.env | {"LAUNCHER": launcher},
                # Not the clone, whose .venv the job would take.
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=150,
            )
            self.code: int | None = finished.returncode
            said = finished.stdout + finished.stderr
        except subprocess.TimeoutExpired as expired:
            self.code = None
            said = str(expired)
            subprocess.run(["scancel", "--name=parallelcnn"], env=cluster.env, timeout=20)
        self.output = job_log.read_text() if job_log.exists() else "(the job wrote no output)"
        self.report = f"{' '.join(command)}\n{said}\n--- job\n{self.output}\n{cluster.logs()}"

    def trained_one_world_on(self, *hosts: str) -> None:
        """Check that the job trained one network, with a rank on each of these hosts."""
        assert self.code == 0, self.report
        summary = json.loads((self.out / "summary.json").read_text())
        assert summary["ranks"] == len(hosts), self.report
        assert summary["hosts"] == list(hosts), self.report
        assert math.isfinite(summary["train_loss"]), self.report
        assert math.isfinite(summary["test_loss"]), self.report
        assert 0 <= summary["test_accuracy"] <= 1, self.report
        assert (self.out / MODEL_FILE).exists(), self.report


def test_a_job_on_two_nodes_trains_one_world_under_mpirun(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    job = Job(cluster, data, tmp_path, "--nodes=2", "--ntasks-per-node=1")
    job.trained_one_world_on("node1", "node2")


def test_a_job_on_two_nodes_trains_one_world_under_srun(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    if not list(BIN.parent.glob("lib/libmpi.so.12*")):
        pytest.skip("srun --mpi=pmi2 is for MPICH")
    launcher = "srun --mpi=pmi2"
    job = Job(cluster, data, tmp_path, "--nodes=2", "--ntasks-per-node=1", launcher=launcher)
    job.trained_one_world_on("node1", "node2")


def test_a_job_on_one_node_trains_one_world_of_its_tasks(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    job = Job(cluster, data, tmp_path, "--nodes=1", "--ntasks-per-node=2")
    job.trained_one_world_on("node1", "node1")


def test_a_job_whose_launcher_does_not_fit_the_mpi_library_is_refused(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    launcher = "srun --mpi=none"
    job = Job(cluster, data, tmp_path, "--nodes=2", "--ntasks-per-node=1", launcher=launcher)
    assert job.code == 2, job.report
    assert "2 separate trainings" in job.output, job.report
    assert "srun --mpi=pm" in job.output or "mpirun" in job.output, job.report
    assert not (job.out / MODEL_FILE).exists(), job.report


def test_a_job_leaves_neither_kernels_on_the_nodes_nor_threads_to_chance(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    # A launcher that looks at what it is handed instead of starting ranks.
    look = tmp_path / "look"
    look.write_text(f'#!/bin/bash\nmkdir "$NUMBA_CACHE_DIR"\nenv >"{seen}"\n')
    look.chmod(0o755)
    job = Job(cluster, data, tmp_path, "--nodes=1", "--ntasks-per-node=1", launcher=str(look))
    assert job.code == 0, job.report
    env = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert env["OMP_NUM_THREADS"] == env["NUMBA_NUM_THREADS"] == "1", job.report
    assert not Path(env["NUMBA_CACHE_DIR"]).exists(), job.report
