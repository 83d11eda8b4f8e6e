"""Whatever datagrams, command lines and numbers of the system are fed in, they are read or refused in a sentence.

And the watch over the readers, which test_fuzzing.py uses, too, notices what they may not do.
"""

import contextlib
import io
import json
import math
import os
import pickle
import tracemalloc
import warnings
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import MEBIBYTE, Violation, examine, many

from parallelcnn import cli
from parallelcnn.errors import InputError
from parallelcnn.resilience import launch
from parallelcnn.resilience.watchdog import Report
from parallelcnn.resources import core_quota

# ---- datagrams, the command line, the system


_odd_fields = st.one_of(st.none(), st.integers(-2, 2**70), st.floats(), st.text(max_size=400), st.lists(st.integers()))


@many
@given(data=st.data())
def test_no_datagram_is_believed(data):
    """Anybody may send one to the watchdog's socket; those of this job's ranks carry its token."""
    good = json.loads(Report(1, "node1", "computing", "f (a.py, line 3)", 99, "barrier", 2.5).datagram("token"))
    for name in data.draw(st.lists(st.sampled_from([*good, "other"]), max_size=2)):
        good[name] = data.draw(_odd_fields)
    for name in data.draw(st.lists(st.sampled_from(list(good)), max_size=1)):
        del good[name]
    datagram = json.dumps(good).encode()[data.draw(st.sampled_from([0, 0, 0, 1])) :]
    found = []
    assert examine(lambda: found.append(Report.read(datagram, "token", 2)), MEBIBYTE) is None
    if found[0] is not None:
        assert good["token"] == "token"
        assert 0 <= found[0].rank < 2
        assert 0 <= found[0].seconds < math.inf
        assert all(isinstance(text, str) for text in (found[0].host, found[0].status, found[0].place))
    assert Report.read(datagram, "another", 2) is None


_OPTIONS = [
    "--reproducible", "--verify", "--checkpoint-every", "--checkpoint-seconds", "--keep-last", "--keep-best",
    "--resume", "--repair", "--timeout", "--data", "--data-dir", "--model", "--epochs", "--batch-size", "--seed",
    "--learning-rate", "--momentum", "--nesterov", "--weight-decay", "--evaluate-every", "--threads", "--profile",
    "--out",
]  # fmt: skip
_WORDS = [
    "train", "evaluate", "--", "-", "digits", "paper", "own.py:", ".py:f", ":", "0", "2", "-1", "1e400", "nan", "inf",
    "1_0", "0x10", "\u0663", "9" * 5000, "x" * 5000, "a/" * 3000, "\udcff", "\n", "", " ", "~", "..", "/dev/null",
    "/dev/zero", "1e-400", "True", "@file", "--data=", "majority",
]  # fmt: skip


@settings(many, max_examples=100)
@given(words=st.lists(st.one_of(st.sampled_from(_OPTIONS), st.sampled_from(_WORDS)), max_size=6))
def test_no_command_line_does_more_than_be_refused(words, place):
    """The data set at the end is nowhere: none of them gets as far as training."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)

    def command():
        code = cli.main(["train", *words, "--data", "nowhere"])
        text = said.buffer.getvalue()
        if code != 2 or b"Traceback" in text or not text:
            raise Violation(f"exit code {code}: {text[-300:]!r}")

    with (
        contextlib.chdir(place),
        mock.patch("sys.stdout", said),
        mock.patch("sys.stderr", said),
        mock.patch("time.sleep"),
    ):
        cli.main(["train", "--data", "nowhere"])  # imports
        said.buffer.seek(0)
        said.buffer.truncate()
        assert examine(command, 256 * MEBIBYTE, most_seconds=10, forbidden=set()) is None


_good_numbers = st.sampled_from(["100000", "300000", "0", "-1", "max"])
_numbers = st.one_of(_good_numbers, st.sampled_from(["", "x", "9" * 5000, "\u0663", "\u00b2", "\udcff", "1.5"]))
_lines = st.sampled_from(["0::/", "0::/a/b", "4:cpu,cpuacct:/", "3:cpu:/../..", "", "0", "0:", "::", ":cpu:\udcff"])
_quotas = st.one_of(st.tuples(_good_numbers, _good_numbers), st.lists(_numbers, max_size=3)).map(" ".join)
_LAUNCHER = ["SLURM_CPUS_ON_NODE", "SLURM_NTASKS", "SLURM_PROCID", "PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_RANK"]


@many
@given(
    lines=st.lists(_lines, min_size=1, max_size=3),
    files=st.fixed_dictionaries(
        {"cpu.max": _quotas, "cpu/cpu.cfs_quota_us": _numbers, "cpu/cpu.cfs_period_us": _numbers}
    ),
    environment=st.dictionaries(st.sampled_from(_LAUNCHER), _numbers, max_size=3),
)
def test_no_number_of_the_system_or_of_a_launcher_is_believed(place, lines, files, environment):
    groups = place / "groups"
    (groups / "cpu").mkdir(parents=True, exist_ok=True)
    for name, text in {"cgroup": "\n".join(lines), **files}.items():
        (groups / name).write_bytes(os.fsencode(text))

    def read():
        core_quota(groups / "cgroup", groups)
        launch.launched_ranks()
        launch.launched_rank()

    with mock.patch.dict(os.environ, environment):
        assert examine(read, MEBIBYTE) is None


# ---- the watch notices


def _refuse(message):
    raise InputError(message)


@pytest.mark.parametrize(
    ("what", "noticed"),
    [
        (lambda place: (place / "written").write_bytes(b""), "open"),
        (lambda place: (place / "made").mkdir(exist_ok=True), "os.mkdir"),
        (lambda place: pickle.loads(pickle.dumps(Violation)), "pickle.find_class"),
        (lambda place: eval("1"), "compile"),
        (lambda place: __import__("this_module_is_nowhere"), "ModuleNotFoundError"),
        (lambda place: np.ones(2**18), "allocated 2.0 MiB where 1.0 should do"),
        (lambda place: sum(range(1_000_000)), "it took"),
        (lambda place: warnings.warn("of a library", DeprecationWarning, stacklevel=1), "DeprecationWarning"),
        (lambda place: {}["key"], "KeyError"),
        (lambda place: _refuse("two\nlines"), "no letter"),
        (lambda place: _refuse("long " * 999), "4,995 letters"),
    ],
)
def test_the_watch_notices(what, noticed, place):
    with pytest.raises(Violation, match=noticed):
        examine(lambda: what(place), MEBIBYTE, most_seconds=0.1 if noticed == "it took" else 10)
    assert not tracemalloc.is_tracing()


def test_the_watch_lets_readers_read_and_refuse(place):
    (place / "read").write_bytes(b"content")
    assert examine((place / "read").read_bytes, MEBIBYTE) is None
    assert str(examine(lambda: _refuse("no file"), MEBIBYTE)) == "no file"
