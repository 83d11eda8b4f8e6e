"""`slurm/train.sbatch` on a real SLURM: two emulated nodes, see `tests/slurm/cluster_up.sh`."""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from parallelcnn.training.checkpoint import CheckpointFolder

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
    """A job of `train.sbatch`: submitted when it is made, done after `wait`.

    Attributes:
        out: what it gets as `--out`.
        code: how it ended; None if it did not in time.
        output: what it has written.
    """

    def __init__(
        self,
        cluster: Cluster,
        data: Path,
        folder: Path,
        *sbatch: str,
        launcher: str = "mpirun",
        training: tuple[str, ...] = ("--epochs", "1"),
        **env: str,
    ) -> None:
        self.cluster, self.folder, self.out = cluster, folder, folder / "out"
        self.code: int | None = None
        command = ["sbatch", "--parsable", f"--output={folder / 'job.log'}", *sbatch]
        command += [str(ROOT / "slurm" / "train.sbatch"), "--data", str(data), *training, "--out", str(self.out)]
        self.command = " ".join(command)
        submitted = subprocess.run(
            command,
            env=cluster.env | {"LAUNCHER": launcher} | env,
            # Not the clone, whose .venv the job would take.
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert submitted.returncode == 0, submitted.stderr
        self.id = submitted.stdout.strip()

    def slurm(self, command: str) -> str:
        """What a command of SLURM's says, with this job's number in the place of JOB."""
        line = command.replace("JOB", self.id).split()
        return subprocess.run(line, env=self.cluster.env, capture_output=True, text=True, timeout=20).stdout

    def fact(self, name: str) -> str:
        """What the controller knows: JobState, Restarts, ExitCode, ..."""
        facts = dict(one.split("=", 1) for one in self.slurm("scontrol show job JOB").split() if "=" in one)
        return facts[name]

    def wait(self) -> Self:
        """Until it is done; if that takes too long, cancel it. (`sbatch --wait` looks every half minute.)"""
        done = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        if self.wait_until(lambda: self.fact("JobState") in done, 150):
            self.code = int(self.fact("ExitCode").split(":")[0])
        else:
            self.slurm("scancel JOB")
        return self

    def wait_until(self, happened: Callable[[], Any], seconds: float = 60) -> bool:
        """Whether it has happened within so many seconds."""
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    @property
    def output(self) -> str:
        log = self.folder / "job.log"
        return log.read_text() if log.exists() else "(the job wrote no output)"

    @property
    def report(self) -> str:
        """All that helps to find out why."""
        return f"{self.command}\n--- job {self.id}\n{self.output}\n{self.cluster.logs()}"

    def ranks(self, node: str) -> list[int]:
        """The process ids of its ranks on a node."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                env = (process / "environ").read_bytes().split(b"\0")
                ours = {f"SLURM_JOB_ID={self.id}".encode(), f"SLURMD_NODENAME={node}".encode()} <= set(env)
                line = (process / "cmdline").read_bytes().split(b"\0")
                if ours and Path(os.fsdecode(line[0])).name.startswith("python") and b"train" in line:
                    found.append(int(process.name))
        return found

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


@pytest.mark.slow
def test_a_job_on_two_nodes_trains_one_world_under_mpirun(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    job = Job(cluster, data, tmp_path, "--nodes=2", "--ntasks-per-node=1").wait()
    job.trained_one_world_on("node1", "node2")


@pytest.mark.slow
def test_a_job_on_two_nodes_trains_one_world_under_srun(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    if not list(BIN.parent.glob("lib/libmpi.so.12*")):
        pytest.skip("srun --mpi=pmi2 is for MPICH")
    launcher = "srun --mpi=pmi2"
    job = Job(cluster, data, tmp_path, "--nodes=2", "--ntasks-per-node=1", launcher=launcher).wait()
    job.trained_one_world_on("node1", "node2")


def test_a_job_on_one_node_trains_one_world_of_its_tasks(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    job = Job(cluster, data, tmp_path, "--nodes=1", "--ntasks-per-node=2").wait()
    job.trained_one_world_on("node1", "node1")


def test_a_job_whose_launcher_does_not_fit_the_mpi_library_is_refused(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    launcher = "srun --mpi=none"
    job = Job(cluster, data, tmp_path, "--nodes=2", "--ntasks-per-node=1", launcher=launcher).wait()
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
    job = Job(cluster, data, tmp_path, "--nodes=1", "--ntasks-per-node=1", launcher=str(look)).wait()
    assert job.code == 0, job.report
    env = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert env["OMP_NUM_THREADS"] == env["NUMBA_NUM_THREADS"] == "1", job.report
    assert not Path(env["NUMBA_CACHE_DIR"]).exists(), job.report


SLOW_MODEL = '''
"""A small network that takes its time where PAUSE says so, until its job is started again."""

import os
import time
from dataclasses import dataclass

import parallelcnn as pc

PAUSE = 0.0 if "SLURM_RESTART_COUNT" in os.environ else float(os.environ.get("PAUSE", 0.0))  # [s]


@dataclass(frozen=True, repr=False)
class Pause(pc.Layer):
    def output_shape(self, input_shape):
        return input_shape

    def forward(self, step, x):
        step.call(time.sleep, PAUSE)
        return x

    def backward(self, step, dy):
        return dy


def network(classes):
    return (pc.Flatten(), Pause(), pc.Dense(classes))
'''
STEPS = 3 * 128  # of 3 epochs of 512 samples, 4 in a minibatch
ON_TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def long_training(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Arguments of a training that takes minutes where PAUSE is 0.1, and otherwise a second."""
    model = tmp_path_factory.mktemp("model") / "slow.py"
    model.write_text(SLOW_MODEL)
    how = "--epochs 3 --batch-size 4 --reproducible 4 --checkpoint-every 10"
    return ("--model", f"{model}:network", *how.split())


@pytest.fixture(scope="module")
def undisturbed(long_training: tuple[str, ...], data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The SHA-256 of the parameters to which the long training comes on one process."""
    out = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "parallelcnn", "train", "--data", str(data), *long_training, "--out", str(out)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    return hash_of(out)


def hash_of(out: Path) -> str:
    return json.loads((out / "summary.json").read_text())["parameters_sha256"]


def steps_of(out: Path) -> list[int]:
    """The minibatches that metrics.jsonl tells of."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss" in line]


def newest_step(job: Job) -> int:
    """The minibatch of the newest checkpoint; 0 if there is none."""
    return max((int(file.stem[5:]) for file in (job.out / "checkpoints").glob("step-*.npz")), default=0)


def has_checkpoint(job: Job) -> bool:
    return newest_step(job) > 0


@pytest.fixture(scope="module")
def jobs_that_had_to_leave(
    cluster: Cluster, data: Path, long_training: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Job]:
    """Two side by side, since most of it is waiting: for SLURM's clocks, and in the pauses of the network."""

    def start(name: str, pause: str) -> Job:
        folder = tmp_path_factory.mktemp("leaving") / name
        folder.mkdir()
        return Job(cluster, data, folder, *ON_TWO_NODES, training=long_training, PAUSE=pause)

    # One of them still trains when SLURM's signal comes, up to a minute after its first checkpoint.
    at_its_limit, preempted = start("limit", pause="0.3"), start("preempted", pause="0.1")
    assert preempted.wait_until(lambda: has_checkpoint(preempted)), preempted.report
    preempted.slurm("scancel --batch --signal=TERM JOB")
    assert at_its_limit.wait_until(lambda: has_checkpoint(at_its_limit)), at_its_limit.report
    # Only now, because a signal that comes before the training has begun leaves nothing to resume from. A limit is in
    # minutes: this one is at most two minutes away, and SLURM's signal comes at least a minute before it.
    _, minutes, _ = at_its_limit.fact("RunTime").split(":")
    at_its_limit.slurm(f"scontrol update JobId=JOB TimeLimit={int(minutes) + 2}")
    assert at_its_limit.wait_until(lambda: "queued again" in at_its_limit.output, 100), at_its_limit.report
    at_its_limit.slurm("scontrol update JobId=JOB TimeLimit=10")
    return {"time limit": at_its_limit.wait(), "preemption": preempted.wait()}


@pytest.mark.parametrize("reason", ["time limit", "preemption"])
def test_a_job_that_has_to_leave_is_queued_again_and_comes_to_the_same_bits(
    reason: str, jobs_that_had_to_leave: dict[str, Job], undisturbed: str
) -> None:
    job = jobs_that_had_to_leave[reason]
    job.trained_one_world_on("node1", "node2")
    left = re.findall(r"SIGUSR1: stopped after minibatch (\d+);", job.output)
    assert left == re.findall(r"^resumed after minibatch (\d+)$", job.output, re.MULTILINE), job.report
    # Where SLURM is slow to raise its limit, the second start comes to it, too.
    assert len(left) == int(job.fact("Restarts")) >= 1, job.report
    assert all(0 < int(step) < STEPS for step in left), job.report
    assert steps_of(job.out) == list(range(1, STEPS + 1)), job.report
    assert hash_of(job.out) == undisturbed, job.report


@pytest.mark.slow
def test_a_job_that_loses_a_rank_ends_and_another_goes_on_to_the_same_bits(
    cluster: Cluster, data: Path, long_training: tuple[str, ...], undisturbed: str, tmp_path: Path
) -> None:
    job = Job(cluster, data, tmp_path, *ON_TWO_NODES, training=long_training, PAUSE="0.02")
    assert job.wait_until(lambda: has_checkpoint(job)), job.report
    killed = job.ranks("node2")
    assert len(killed) == 1, job.report
    started = time.monotonic()
    os.kill(killed[0], signal.SIGKILL)
    assert job.wait().code not in (0, None), job.report
    assert time.monotonic() - started < 10, job.report
    assert job.fact("Restarts") == "0", job.report
    newest = CheckpointFolder(job.out / "checkpoints").newest()
    assert newest is not None, job.report
    again = Job(cluster, data, tmp_path, *ON_TWO_NODES, training=(*long_training, "--resume")).wait()
    again.trained_one_world_on("node1", "node2")
    assert f"resumed after minibatch {newest.history.steps}\n" in again.output, again.report
    assert steps_of(again.out) == list(range(1, STEPS + 1)), again.report
    assert hash_of(again.out) == undisturbed, again.report


def how_to_resume(job: Job) -> list[str]:
    """The command in the last line of a job's output, word by word."""
    assert "; to resume, with these numbers of nodes and tasks or others: " in job.output, job.report
    return shlex.split(job.output.splitlines()[-1].partition(" others: ")[2])


def stop(job: Job, after: int) -> int:
    """Stop a job for good some minibatches after the one given; returns the last that it has trained."""
    assert job.wait_until(lambda: newest_step(job) >= after + 10, 120), job.report
    job.slurm("scancel --batch --signal=INT JOB")
    assert job.wait().code not in (0, None), job.report  # 138, or 255 where a signal finds mpirun without ranks
    assert job.fact("Restarts") == "0", job.report
    return newest_step(job)


def test_a_stopped_job_is_continued_with_more_tasks_and_with_fewer_to_the_same_bits(
    cluster: Cluster, data: Path, long_training: tuple[str, ...], undisturbed: str, tmp_path: Path
) -> None:
    """One task, then two on two nodes, then one with two threads: never more than two cores, which all nodes share."""
    one = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1")
    two = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
    threads = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2")
    training = (*long_training, "--threads", "1")
    left = [0]
    for size, options in ((one, training), (two, (*training, "--resume"))):
        job = Job(cluster, data, tmp_path, *size, training=options, PAUSE="0.1")
        left.append(stop(job, after=left[-1]))
        assert left[-1] % (STEPS // 3) != 0, f"not in the middle of an epoch\n{job.report}"
        command = how_to_resume(job)
        assert command[:5] == ["sbatch", *size, "slurm/train.sbatch"], job.report
        assert command[5:] == ["--data", str(data), *options, "--out", str(job.out), "--resume"], job.report
    job = Job(cluster, data, tmp_path, *threads, training=(*long_training, "--threads", "2", "--resume")).wait()
    assert job.code == 0, job.report
    assert re.findall(r"^ranks      (\d) on .*, (\d) thread", job.output, re.MULTILINE) == [
        ("1", "1"),
        ("2", "1"),
        ("1", "2"),
    ], job.report
    for words in (r"SIGUSR1: stopped after minibatch (\d+);", r"(?m)^resumed after minibatch (\d+)$"):
        assert list(map(int, re.findall(words, job.output))) == left[1:], job.report
    assert "other bits" not in job.output, job.report
    assert steps_of(job.out) == list(range(1, STEPS + 1)), job.report
    assert hash_of(job.out) == undisturbed, job.report


@pytest.fixture
def leaving_launcher(tmp_path: Path) -> str:
    """A launcher whose training leaves when it is asked to, and that says how it was called."""
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/bash\ntrap 'exit 138' USR1\necho called \"$@\"\nwhile :; do sleep 0.1; done\n")
    launcher.chmod(0o755)
    return str(launcher)


def test_a_job_that_may_not_be_queued_again_says_how_to_go_on(
    cluster: Cluster, data: Path, leaving_launcher: str, tmp_path: Path
) -> None:
    job = Job(cluster, data, tmp_path, "--no-requeue", launcher=leaving_launcher)
    assert job.wait_until(lambda: "called" in job.output), job.report
    job.slurm("scancel --batch --signal=USR1 JOB")
    assert job.wait().code == 138, job.report
    assert how_to_resume(job)[:2] == [f"LAUNCHER={leaving_launcher}", "sbatch"], job.report
    assert how_to_resume(job)[-3:] == ["--out", str(job.out), "--resume"], job.report


def test_a_task_of_an_array_that_has_to_leave_does_not_take_the_others_along(
    cluster: Cluster, data: Path, leaving_launcher: str, tmp_path: Path
) -> None:
    """One of them has the number of the array."""
    job = Job(cluster, data, tmp_path, "--array=0-1", "--nodes=1", "--ntasks-per-node=1", launcher=leaving_launcher)
    try:
        for task, starts in ((0, 2), (1, 3)):
            assert job.wait_until(lambda starts=starts: job.output.count("called") == starts), job.report
            job.slurm(f"scancel --batch --signal=USR1 JOB_{task}")
            assert job.wait_until(lambda starts=starts: job.output.count("called") > starts), job.report
        time.sleep(5)
        assert job.output.count("called") == 4, job.report
        for task in (0, 1):
            assert "Restarts=1 " in job.slurm(f"scontrol show job JOB_{task}"), job.report
        assert job.output.count("queued again, and continues") == 2, job.report
    finally:
        job.slurm("scancel JOB")


def test_a_cancelled_job_is_not_queued_again(
    cluster: Cluster, data: Path, leaving_launcher: str, tmp_path: Path
) -> None:
    job = Job(cluster, data, tmp_path, launcher=leaving_launcher)
    assert job.wait_until(lambda: "called" in job.output), job.report
    job.slurm("scancel JOB")
    job.wait()
    assert job.fact("JobState") == "CANCELLED", job.report
    assert not job.wait_until(lambda: job.fact("JobState") != "CANCELLED", 2), job.report
    assert job.output.count("called") == 1, job.report
