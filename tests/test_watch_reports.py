"""What ranks report to the watch: how it travels, and the message that is made of it."""

import json

import pytest

from parallelcnn.resilience.watchdog import RankView, Report, describe, find_missing


def report(rank, arrivals, waiting="", seconds=7.0, status="computing"):
    return Report(rank, f"node{rank}", status, "f (a.py, line 3)", arrivals, waiting, seconds)


def views(*reports, silent=()):
    return [RankView(one, True, 9.0 if rank in silent else 0.1) for rank, one in enumerate(reports)]


def test_whoever_has_come_to_fewer_collectives_is_missing():
    seen = views(report(0, 5, "barrier", 20), report(1, 4), report(2, 5, "barrier", 30))
    waiter, missing = find_missing(seen, 1)
    assert waiter.rank == 2
    assert missing == [1]


def test_a_rank_that_has_left_the_collective_is_not_missing_in_it():
    """The sender of a broadcast continues before others have come, to compute or to wait in the next one."""
    for sender in (report(0, 5), report(0, 6, "gather", 50)):
        waiter, missing = find_missing(views(sender, report(1, 5, "broadcast"), report(2, 4)), 1)
        assert waiter.rank == 1
        assert missing == [2]


def test_a_silent_rank_is_missing_wherever_it_said_that_it_was():
    for last in (report(2, 5, "barrier"), report(2, 4, "gather"), report(2, 9)):
        waiter, missing = find_missing(views(report(0, 5, "barrier"), report(1, 5, "barrier"), last, silent=[2]), 1)
        assert waiter.arrivals == 5
        assert missing == [2]


def test_nobody_is_missing_where_nobody_waits():
    assert find_missing(views(report(0, 5), report(1, 2)), 1) == (None, [])


def test_the_message():
    seen = views(
        report(0, 5, "gather", 301.2, "reading the data set"), report(1, 4, seconds=302), report(2, 4), silent=[2]
    )
    seen += [RankView(), RankView(report(4, 1, "the handshake"), False, 300)]
    assert describe(seen, 1, 300) == (
        "rank 0 of 5, on node0, has waited 301 s in gather (collective 5) after reading the data set, longer than "
        "--timeout 300. Not arrived:\n"
        "    rank 1 on node1: computing, at f (a.py, line 3), for 302 s\n"
        "    rank 2 on node2: has not been heard from for 9.0 s; it was last computing, at f (a.py, line 3)\n"
        "    rank 3: has not come since the start, so what it does is not known\n"
        "    rank 4 on node4: none of its reports has arrived (UDP), so what it does is not known\n"
        "All ranks end here. With a larger --timeout they wait longer, with 0 for ever."
    )


def test_the_message_where_ranks_are_in_different_collectives():
    text = describe(views(report(0, 5, "gather", 6), report(1, 5, "barrier", 5)), 1, 2)
    assert "although no rank is missing" in text
    assert "rank 0 on node0: waiting in gather (collective 5) after computing\n" in text
    assert "rank 1 on node1: waiting in barrier (collective 5) after computing\n" in text


# ---- datagrams


def test_a_report_survives_its_journey():
    sent = report(1, 4, "allreduce", status="é\n" * 100)
    assert Report.read(sent.datagram("token"), "token", 2) == sent


GOOD = json.loads(report(1, 4).datagram("token"))


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"token",
        b"token\xff",
        b"[" * 5000 + b"token",
        b'"token"',
        b'["token"]',
        b'{"a": "token"}',
        b'{"token": "token"}',
        *(
            json.dumps({**GOOD, **changed}).encode()
            for changed in (
                {"token": "another", "host": "token"},
                {"rank": 2},
                {"rank": -1},
                {"rank": True},
                {"rank": "1"},
                {"arrivals": -1},
                {"arrivals": 1.5},
                {"seconds": -1},
                {"seconds": float("nan")},
                {"seconds": float("inf")},
                {"seconds": "7"},
                {"status": "x" * 301},
                {"status": None},
                {"more": 1},
            )
        ),
        json.dumps(GOOD).encode()[:-1],
    ],
)
def test_a_datagram_that_no_rank_sent_is_no_report(datagram):
    assert Report.read(datagram, "token", 2) is None
