"""The soak: ranks killed at random moments (scripts/soak.py), shortly; and that it would notice what is wrong."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import launch
import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "soak.py"


@pytest.mark.mpi
@pytest.mark.parametrize("mode", ["ends", "survives", "alone"])
def test_nothing_is_lost_when_ranks_are_killed(mode, tmp_path):
    if mode == "survives":
        launch.skip_unless_ranks_can_be_lost()
    kills = {"ends": 4, "survives": 5, "alone": 1}[mode]
    line = [str(SCRIPT), "--modes", mode, "--kills", str(kills), "--seed", "7", "--findings", str(tmp_path)]
    ran = launch.run([sys.executable, *line], limit=300, PYTHONPATH=str(ROOT))
    errors = "".join(f"{file}\n{file.read_text()[-3000:]}" for file in tmp_path.glob("trial-*/start-*/err"))
    assert ran.code == 0, ran.out + ran.err + errors
    rows = {
        cells[1].strip(): cells[-2].strip()
        for cells in (row.split("|") for row in ran.out.splitlines())
        if len(cells) > 3
    }
    assert int(rows["killed"]) >= kills
    assert all(
        rows[what] == "0"
        for what in ("hangs", "timeouts", "lost runs", "wrong sums", "unreadable files", "left behind")
    )


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import soak

    return soak


@pytest.mark.parametrize("words", ["--python a b", "--python a --python b"])
def test_the_soak_takes_pythons_together_or_one_by_one(words, soak):
    assert soak._options(words.split()).python == ["a", "b"]


def test_the_soaks_page_tells_how_it_was_called_but_not_where_this_machine_keeps_things(soak, monkeypatch):
    words = "--python .venv-mpich/bin/python /opt/mpi --python=/home/me/env/bin/python --page=/home/me/page --kills 9"
    monkeypatch.setattr(sys, "argv", ["/home/me/scripts/soak.py", *words.split()])
    installation = soak.Installation("python", "MPICH 5")
    options = SimpleNamespace(installations=[installation], at_once=2)
    page = soak.page(options, {mode: soak.Counter(killed=3) for mode in soak.MODES}, 60.0)
    assert page.startswith("# 9 killed ranks\n")
    called = "scripts/soak.py --python .venv-mpich/bin/python opt/mpi --python env/bin/python --kills 9"
    assert page.splitlines()[2].strip() == called


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A folder that a training has finished."""
    out = tmp_path_factory.mktemp("trained") / "out"
    line = ["train", "--data", folder, "--epochs", 2, "--reproducible", 2, "--out", out, "--checkpoint-every", 1]
    ran = launch.parallelcnn(*line)
    assert ran.code == 0, ran.err
    return out


@pytest.fixture
def done(soak, trained, tmp_path):
    """(a trial that is done, what was expected of it)"""
    trial = soak.Trial(0, "alone", 0, ["--keep-last", "2"], tmp_path)
    (tmp_path / "tmp").mkdir()
    shutil.copytree(trained, trial.out)
    sha256 = json.loads((trial.out / "summary.json").read_text())["parameters_sha256"]
    newest = max((trial.out / "checkpoints").iterdir())
    return trial, soak.Expected(sha256, soak.load_checkpoint(newest).history.losses, 460)


def test_the_soak_finds_nothing_where_nothing_is_wrong(soak, done):
    trial, expected = done
    soak.check_results(trial, expected)
    assert trial.findings == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a line of metrics.jsonl": lambda out: cut(out / "metrics.jsonl"),
    "a checkpoint": lambda out: cut(min((out / "checkpoints").iterdir())),
    "the last checkpoint": lambda out: max((out / "checkpoints").iterdir()).unlink(),
    "model.npz": lambda out: cut(out / "model.npz"),
    "summary.json": lambda out: (out / "summary.json").unlink(),
    "an unfinished file": lambda out: (out / ".model.npz.x.unfinished").touch(),
    "an unfinished checkpoint": lambda out: (out / "checkpoints" / ".step-000000001.npz.x.unfinished").touch(),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_the_soak_notices(what, soak, done):
    trial, expected = done
    DAMAGES[what](trial.out)
    soak.check_results(trial, expected)
    assert trial.findings


def test_the_soak_notices_other_parameters_and_losses(soak, done):
    trial, expected = done
    soak.check_results(trial, soak.Expected("0" * 64, [loss + 1e-6 for loss in expected.losses], 460))
    assert trial.counts["wrong sums"] >= 4
