"""What follows from what a handler says."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.outcomes import (
    LONGEST_RETRY_DELAY_S,
    Bury,
    Cancel,
    Cancelled,
    Completed,
    Delay,
    HandedBack,
    Publish,
    Reject,
    Release,
    Retry,
    RetryPolicy,
    decide,
)
from common.records import Failure

FAILURE = Failure(type="engine_failed", detail="the engine failed")
POLICY = RetryPolicy(max_attempts=3, delay_s=5)


@pytest.mark.parametrize(
    ("outcome", "attempts", "verdict"),
    [
        (Completed("{}", 2.5), 1, Publish("{}", 2.5)),
        (Reject(FAILURE), 1, Bury(FAILURE, "engine_failed")),
        (Retry(FAILURE), 3, Bury(FAILURE, "attempts_spent")),
        (Retry(FAILURE), 4, Bury(FAILURE, "attempts_spent")),
        (Cancelled(), 3, Cancel()),
        (HandedBack(), 3, Release()),
    ],
)
def test_an_outcome_has_one_verdict(outcome, attempts, verdict):
    """The whole retry policy is this table."""
    assert decide(outcome, attempts, POLICY, random.Random(1)) == verdict


def test_a_retry_waits_while_attempts_are_left():
    """A passing fault must not cost the job."""
    verdict = decide(Retry(FAILURE), 2, POLICY, random.Random(1))

    assert isinstance(verdict, Delay)
    assert verdict.failure == FAILURE


@given(attempts=st.integers(1, 10_000), delay_s=st.floats(0, 86_400), seed=st.integers())
def test_a_delay_doubles_up_to_an_hour_within_its_jitter(attempts, delay_s, seed):
    """Without the bound a job with many attempts would wait for years; without jitter all come back at once."""
    delay_ms = RetryPolicy(10_000, delay_s).delay_ms(attempts, random.Random(seed))

    whole_ms = min(delay_s * 2.0 ** min(attempts - 1, 30), LONGEST_RETRY_DELAY_S) * 1000
    assert whole_ms / 2 - 1 <= delay_ms <= whole_ms + 1


def test_without_a_limit_nothing_is_ever_given_up():
    """A result waits for its database however often it was handed from writer to writer."""
    endless = RetryPolicy(max_attempts=None, delay_s=0)

    assert endless.allows(1_000_000)
    assert isinstance(decide(Retry(FAILURE), 1_000_000, endless, random.Random(1)), Delay)
