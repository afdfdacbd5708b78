"""Leases: when they end, and what is sent of the progress and the parts."""

import pytest

from common.lease import _PARTS_AT_ONCE, TIME_LIMIT_GRACE_S, Ended, Lease


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
    return Lease(lambda progress, parts: (progress, *parts), clock=clock, **limits)


def renew(kept):
    """Return what a renewal carries that arrives."""
    command, sent = kept.next_command()
    kept.renewed(sent)
    return command


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


def test_progress_is_sent_when_it_has_changed(clock):
    """Every renewal of every job would otherwise be an event."""
    kept = lease(clock)
    sent = []
    for report in (None, 0.25, None, 0.25, 0.5):
        if report is not None:
            kept.report(report)
        sent.append(renew(kept))

    assert sent == [("",), ("0.250",), ("",), ("",), ("0.500",)]


def test_progress_that_did_not_arrive_is_sent_again(clock):
    """A renewal that failed must not swallow the progress."""
    kept = lease(clock)
    kept.report(0.25)

    assert kept.next_command()[0] == kept.next_command()[0] == ("0.250",)


def test_each_part_is_sent_once(clock):
    """A checkpoint that was sent anew each time would be more traffic than the transcript."""
    kept = lease(clock)
    kept.keep("0", "first")
    kept.keep("1", "second")

    assert renew(kept) == ("", ("0", "first"), ("1", "second"))
    kept.keep("2", "third")
    assert renew(kept) == ("", ("2", "third"))
    assert renew(kept) == ("",)


def test_parts_that_did_not_arrive_are_sent_again(clock):
    """A renewal that failed must not leave a hole in the checkpoint."""
    kept = lease(clock)
    kept.keep("0", "first")
    kept.next_command()
    kept.keep("1", "second")

    assert renew(kept) == ("", ("0", "first"), ("1", "second"))


def test_a_part_that_is_finished_while_others_are_sent_goes_with_the_next_renewal(clock):
    """The work goes on while its renewal is on the way."""
    kept = lease(clock)
    kept.keep("0", "first")
    _, sent = kept.next_command()
    kept.keep("1", "second")
    kept.renewed(sent)

    assert renew(kept) == ("", ("1", "second"))


def test_many_parts_are_spread_over_renewals(clock):
    """One job's checkpoint must not hold up the renewals of all others; each part goes, in its order."""
    kept = lease(clock)
    parts = [(str(number), "text") for number in range(2 * _PARTS_AT_ONCE + 1)]
    for part in parts:
        kept.keep(*part)
    renewals = [renew(kept)[1:] for _ in range(4)]

    assert [len(sent) for sent in renewals] == [_PARTS_AT_ONCE, _PARTS_AT_ONCE, 1, 0]
    assert [part for sent in renewals for part in sent] == parts


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
