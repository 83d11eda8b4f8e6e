"""Arrays that the ranks of a node share: one copy, nothing left behind."""

import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest
import small
from thread_ranks import on_ranks

from parallelcnn.comm import share_on_node, shared_file, sharing
from parallelcnn.comm.mapping import SharedFile


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["in memory", "on a disk"])
def place(request, monkeypatch):
    """Where the shared file is."""
    monkeypatch.setattr(sharing, "_MEMORY_SHARE", 1 / 8 if request.param == "in memory" else 0)
    return request.param


def share(comm):
    return share_on_node(comm, lambda: {"rank": comm.rank, "data": small.dataset(30)})


def test_ranks_of_a_node_get_one_copy_from_a_file_that_has_no_name_at_any_time(empty, place, monkeypatch):
    seen, links = [], []
    map_file = SharedFile.map

    def look_and_map(file):
        seen.extend(empty.iterdir())
        links.append(os.readlink(file.path))
        return map_file(file)

    monkeypatch.setattr(SharedFile, "map", look_and_map)
    values = on_ranks(3, share)
    assert seen == []
    assert all(link.startswith("/memfd:" if place == "in memory" else str(empty)) for link in links)
    places = {shared_file(value["data"].images) for value in values}
    assert len(places) == 1
    assert places != {None}
    for value in values:
        np.testing.assert_array_equal(value["data"].images, small.dataset(30).images)
        assert value["rank"] == 0
        assert not value["data"].images.flags.writeable


@pytest.mark.parametrize("path", ["/proc/4194304/fd/3", "/proc/self/stat"], ids=["no such process", "another one"])
def test_a_rank_that_cannot_open_the_file_loads_by_itself(path, empty, place, monkeypatch):
    write = sharing._write_arrays

    def write_elsewhere(*arguments):
        written = write(*arguments)
        return written._replace(file=written.file._replace(path=path))

    monkeypatch.setattr(sharing, "_write_arrays", write_elsewhere)
    values = on_ranks(2, share)
    assert [value["rank"] for value in values] == [0, 1]
    assert list(empty.iterdir()) == []


def _refused(name):
    raise PermissionError(1, "Operation not permitted")


_create = os.memfd_create


def _unwritable(name):
    file = _create(name, os.MFD_ALLOW_SEALING)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return file


@pytest.mark.parametrize("new_memory", [_refused, _unwritable])
def test_where_memory_cannot_be_shared_a_disk_is_used(new_memory, empty, monkeypatch):
    links = []
    map_file = SharedFile.map

    def look_and_map(file):
        links.append(os.readlink(file.path))
        return map_file(file)

    monkeypatch.setattr(SharedFile, "map", look_and_map)
    monkeypatch.setattr(os, "memfd_create", new_memory)
    for value in on_ranks(2, share):
        np.testing.assert_array_equal(value["data"].images, small.dataset(30).images)
        assert value["rank"] == 0
    assert len(links) == 2
    assert all(link.startswith(str(empty)) for link in links)


@pytest.mark.usefixtures("place")
def test_empty_arrays_are_shared():
    for value in on_ranks(2, lambda comm: share_on_node(comm, lambda: (comm.rank, np.zeros((0, 3))))):
        assert value[0] == 0
        assert value[1].shape == (0, 3)


def test_an_array_of_this_process_alone_is_in_no_shared_file(tmp_path):
    assert shared_file(np.zeros(100_000)) is None
    np.save(tmp_path / "array.npy", np.zeros(100_000))
    assert shared_file(np.load(tmp_path / "array.npy", mmap_mode="r")) is not None
    assert shared_file(np.load(tmp_path / "array.npy", mmap_mode="c")) is None  # a copy of what is written to it


@pytest.mark.parametrize("part", [1 / 8, 0], ids=["in memory", "on a disk"])
def test_nothing_stays_behind_where_a_rank_is_killed_while_it_shares(part, tmp_path):
    script = f"""
import contextlib, os, signal
import small
from parallelcnn.comm import sharing
sharing._MEMORY_SHARE = {part}
with contextlib.ExitStack() as files:
    sharing._write_arrays(small.dataset(300), files)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = subprocess.run([sys.executable, "-c", script], env={"TMPDIR": str(tmp_path), "PYTHONPATH": "tests"})
    assert ran.returncode == -9
    assert list(tmp_path.iterdir()) == []
