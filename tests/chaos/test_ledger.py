"""How a job may end follows from what was asked and answered: too strict is a false alarm, too lax sees nothing."""

import random
from pathlib import Path

import pytest

from bench.breaker.ledger import Asked, Submission, Way, plan_jobs
from bench.breaker.recordings import Recording, Recordings
from bench.breaker.standin import Orders
from bench.breaker.watch import Death, Watch

MELODY = Recording(Path("/a.wav"), "do re")
LONG = Recording(Path("/long.wav"), "do re mi")
BROKEN = Recording(Path("/broken.wav"), None)
RECORDINGS = Recordings((MELODY,), LONG, BROKEN)


@pytest.mark.parametrize(
    ("text", "cancelled", "revived", "ends"),
    [
        ("do", Asked.NO, False, {"completed"}),
        (None, Asked.NO, False, {"failed"}),
        ("do", Asked.GRANTED, False, {"cancelled"}),
        ("do", Asked.UNKNOWN, False, {"completed", "cancelled"}),
        ("do", Asked.GRANTED, True, {"completed", "cancelled"}),
        (None, Asked.UNKNOWN, False, {"failed", "cancelled"}),
    ],
)
def test_a_job_may_end_only_as_what_was_asked_allows(text, cancelled, revived, ends):
    """A cancellation that was granted is a promise, too."""
    job = Submission("a", Way.HTTP, "/a.wav", text, cancelled=cancelled, revived=revived)
    assert job.may_end_as == ends


def test_the_same_seed_plans_the_same_jobs():
    """A failing seed can be repeated."""
    assert plan_jobs(200, 5, RECORDINGS, [MELODY]) == plan_jobs(200, 5, RECORDINGS, [MELODY])


def test_every_run_has_jobs_that_die_hang_stumble_and_cannot_be_read():
    """A short run must meet them, too."""
    jobs = plan_jobs(100, random.randrange(1000), RECORDINGS, [MELODY])
    assert {job.orders for job in jobs} == set(Orders)
    assert {job.source for job in jobs} == {"/a.wav", "/long.wav", "/broken.wav"}
    doomed = [job for job in jobs if job.orders in {Orders.DIE, Orders.HANG} or job.source == "/broken.wav"]
    assert {job.text for job in doomed} == {None}
    assert all(job.text for job in jobs if job not in doomed)


def test_a_rescue_lasts_from_the_death_to_the_next_start():
    """A start before it is the one that was lost; a job that was cancelled need not start again."""
    watch = Watch(None)
    watch.deaths.append(Death(at_ms=1000, job_ids=("a", "gone")))
    watch.started_ms |= {"a": [400, 3500, 9000], "gone": [500, 60_000]}
    assert watch.rescues_s(without={"gone"}) == [2.5]
