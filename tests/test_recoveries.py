"""Many losses in a short time (scripts/recoveries.py), shortly; and that it would notice what is wrong."""

import random
import sys
from types import SimpleNamespace

import launch
import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "recoveries.py"


@pytest.fixture
def recoveries(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import recoveries

    return recoveries


@pytest.mark.mpi
def test_ranks_recover_from_many_losses():
    launch.skip_unless_ranks_can_be_lost()
    ran = launch.run([sys.executable, str(SCRIPT), "--runs", "3", "--seed", "2"], limit=150)
    assert ran.code == 0, ran.out + ran.err
    assert "| runs | 3 |" in ran.out


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_of_every_plan_some_ranks_are_left_and_others_die_once_after_those_before_them(ranks, recoveries):
    for seed in range(200):
        plan = recoveries.draw_plan(random.Random(seed), ranks)
        victims = [death["rank"] for death in plan]
        assert 0 < len(set(victims)) == len(victims) < ranks
        for number, death in enumerate(plan):
            assert death["gone"] <= number
            assert death["going"] <= death["gone"]


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("pass", "crashed"),
        ("print('Traceback (most recent call last):')", "tracebacks"),
        ("""print('{"recoveries": 1, "wrong": 2}')""", "wrong values"),
        ("import time; time.sleep(100)", "hangs"),
    ],
)
def test_what_goes_wrong_is_counted(program, found, recoveries, monkeypatch):
    monkeypatch.setattr(recoveries, "_LIMIT", 2.0 if found == "hangs" else 30.0)
    installation = SimpleNamespace(launch=lambda ranks, survives: [sys.executable, "-c", program])
    counts, _ = recoveries.run(installation, 8, 0, 0)
    assert counts[found] > 0
    assert counts["hangs"] == (found == "hangs")


def test_where_all_that_are_left_tell_that_all_is_well_nothing_is_found(recoveries):
    program = """
import json, sys
for _ in range(8 - len(json.loads(sys.argv[3]))):
    print('{"recoveries": 2, "wrong": 0}')
"""
    installation = SimpleNamespace(launch=lambda ranks, survives: [sys.executable, "-c", program])
    counts, _ = recoveries.run(installation, 8, 0, 0)
    assert counts["recoveries"] == 2
    assert not any(counts[name] for name in recoveries.COUNTS[3:])
