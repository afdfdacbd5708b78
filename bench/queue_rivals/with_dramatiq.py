"""dramatiq: one process with 32 threads."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from stamps import PORT, become, play, stamp

dramatiq.set_broker(RedisBroker(port=PORT))


@dramatiq.actor(queue_name="bench")
def noop() -> None:
    stamp()


def one() -> None:
    noop.send()


def many(count: int) -> None:
    for _ in range(count):
        noop.send()


def work() -> None:
    become("dramatiq", "with_dramatiq", "--processes", "1", "--threads", "32")


if __name__ == "__main__":
    play(many, one, work)
