"""State that belongs to the whole process is not changed for a moment, which other threads would notice."""

import contextlib
import os
import stat

import pytest
import threadpoolctl

from parallelcnn.files.atomic import write_atomically
from parallelcnn.training.threads import one_blas_thread


@pytest.fixture
def umask(monkeypatch):
    """Sets the umask, and forbids it from then on."""
    before, real = os.umask(0o077), os.umask

    def forbidden(mask):
        raise AssertionError("the umask is the process's")

    def set_umask(mask):
        real(mask)
        monkeypatch.setattr("os.umask", forbidden)

    yield set_umask
    real(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664), (0o000, 0o666)])
def test_a_new_file_has_the_permissions_of_the_umask_which_is_not_touched(umask, mask, mode, tmp_path):
    umask(mask)
    for _ in range(2):  # new, and in place of another
        write_atomically(tmp_path / "file", b"content")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
        assert (tmp_path / "file").read_bytes() == b"content"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_threads_that_limit_blas_one_within_the_other_leave_it_as_it_was(monkeypatch):
    blas = {"threads": 8}

    class Limits:
        def __init__(self, limit, user_api):
            self._before, blas["threads"] = blas["threads"], limit

        def __enter__(self):
            return self

        def restore_original_limits(self):
            blas["threads"] = self._before

        def __exit__(self, *_):
            self.restore_original_limits()

    monkeypatch.setattr(threadpoolctl, "threadpool_limits", Limits)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
        one.enter_context(one_blas_thread())
        other.enter_context(one_blas_thread())
        assert blas["threads"] == 1
        one.close()
        assert blas["threads"] == 1
        other.close()
    assert blas["threads"] == 8
