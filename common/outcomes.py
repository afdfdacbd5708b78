"""What a handler may say of an entry, and what follows from it.

A handler returns an `Outcome` and never touches a stream. `decide` turns the outcome and the attempts into a
`Verdict`; the stage hands the verdict to the one method that settles entries. Logs and metrics call a verdict by its
`NAME`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from common.records import Failure

# A retry never waits longer than this, however often the delay has doubled.
LONGEST_RETRY_DELAY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Completed:
    """The work is done; `body` is what the next stage needs (JSON), "" when there is none."""

    body: str = ""
    audio_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """It did not work this time; another attempt may."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Reject:
    """It will never work."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked for the job to be cancelled while it ran."""


@dataclass(frozen=True, slots=True)
class HandedBack:
    """This process stops; another consumer shall do it, at once and at no cost of an attempt."""


Outcome = Completed | Retry | Reject | Cancelled | HandedBack


@dataclass(frozen=True, slots=True)
class Publish:
    """Pass the result on and retire the entry."""

    NAME: ClassVar = "completed"

    body: str
    audio_s: float


@dataclass(frozen=True, slots=True)
class Delay:
    """Retire the entry and bring the job back after `delay_ms`."""

    NAME: ClassVar = "retried"

    failure: Failure
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Bury:
    """Retire the entry as a dead letter; the job has failed."""

    NAME: ClassVar = "failed"

    failure: Failure
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Retire the entry; the job is cancelled."""

    NAME: ClassVar = "cancelled"


@dataclass(frozen=True, slots=True)
class Release:
    """Leave the entry for another consumer to take at once."""

    NAME: ClassVar = "released"


Verdict = Publish | Delay | Bury | Cancel | Release


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after what wait a job is tried again."""

    max_attempts: int | None
    """None: as often as it takes."""
    delay_s: float

    def allows(self, attempts: int) -> bool:
        """Whether this many attempts may be made."""
        return self.max_attempts is None or attempts <= self.max_attempts

    def delay_ms(self, attempts: int, rng: random.Random) -> int:
        """Return the wait before the next attempt, in ms.

        Doubles with each attempt, up to an hour; jittered between half and the whole, so that jobs that failed
        together do not come back together.
        """
        doubled = self.delay_s * 2.0 ** min(attempts - 1, 30)
        return round(min(doubled, LONGEST_RETRY_DELAY_S) * (0.5 + rng.random() / 2) * 1000)


def decide(outcome: Outcome, attempts: int, policy: RetryPolicy, rng: random.Random) -> Verdict:
    """Turn what the handler said into what happens to the entry.

    Args:
        outcome: what the handler returned.
        attempts: how often the job was started, this time included.
        policy: the job's own limits.
        rng: the source of jitter.
    """
    match outcome:
        case Completed(body, audio_s):
            return Publish(body, audio_s)
        case Reject(failure):
            return Bury(failure, reason=failure.type)
        case Retry(failure) if not policy.allows(attempts + 1):
            return Bury(failure, reason="attempts_spent")
        case Retry(failure):
            return Delay(failure, policy.delay_ms(attempts, rng))
        case Cancelled():
            return Cancel()
        case HandedBack():
            return Release()
