"""Leases: when they end, and what is sent of the progress."""

import pytest

from common.lease import TIME_LIMIT_GRACE_S, Ended, Lease


class Clock:
    """Seconds that a test owns."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def lease(clock, **limits):
    return Lease(lambda progress: ("renew", progress), clock=clock, **limits)


def test_a_lease_without_limits_is_never_spent(clock):
    """The writer waits for a database for as long as it takes."""
    kept = lease(clock)
    clock.now_s += 1e9

    assert kept.spent() is None


def test_a_lease_is_let_go_a_moment_after_the_time_limit(clock):
    """The event loop ends the job at the limit; if it has not shortly after, it hangs, and must lose the job."""
    kept = lease(clock, limit_s=60)

    clock.now_s += 60 + TIME_LIMIT_GRACE_S
    assert kept.spent() is None
    clock.now_s += 0.1
    assert kept.spent() is Ended.EXPIRED


def test_a_step_that_shows_no_sign_of_life_has_stalled(clock):
    """Slow work goes on for ever as long as it moves; a step that stands still does not."""
    kept = lease(clock, stall_s=30)

    with kept.step(), kept.step() as alive:
        clock.now_s += 30
        alive()
        assert kept.spent() is None
        clock.now_s += 0.1
        assert kept.spent() is Ended.STALLED


def test_waiting_between_steps_is_no_stall(clock):
    """A job whose chunks queue behind another's is not hung."""
    kept = lease(clock, stall_s=30)
    with kept.step():
        clock.now_s += 10

    clock.now_s += 1e6
    assert kept.spent() is None


def test_progress_is_sent_when_it_has_changed(clock):
    """Every renewal of every job would otherwise be an event."""
    kept = lease(clock)
    sent = []
    for report in (None, 0.25, None, 0.25, 0.5):
        if report is not None:
            kept.report(report)
        command = kept.next_command()
        kept.renewed(command)
        sent.append(command[-1])

    assert sent == ["", "0.250", "", "", "0.500"]


def test_progress_that_did_not_arrive_is_sent_again(clock):
    """A renewal that failed must not swallow the progress."""
    kept = lease(clock)
    kept.report(0.25)

    assert kept.next_command() == kept.next_command() == ("renew", "0.250")


@pytest.mark.parametrize(("reported", "kept_as"), [(-1.0, 0.0), (0.3, 0.3), (1.7, 1.0)])
def test_progress_stays_between_nothing_and_all(clock, reported, kept_as):
    """A sum of shares may end a hair above one."""
    kept = lease(clock)
    kept.report(reported)

    assert kept.progress == kept_as


def test_a_lease_ends_once(clock):
    """The first reason is the one that the stage acts on."""
    kept = lease(clock)
    calls = []
    kept.on_end = lambda: calls.append(kept.ended)

    kept.end(Ended.LOST)
    kept.end(Ended.CANCELLED)

    assert calls == [Ended.LOST]
    assert kept.over
