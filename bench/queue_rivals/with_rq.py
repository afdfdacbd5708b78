"""rq: its default worker, which forks for each job."""

from __future__ import annotations

import redis
from rq import Queue
from stamps import PORT, URL, become, play, stamp

queue = Queue(connection=redis.Redis(port=PORT))


def many(count: int) -> None:
    queue.enqueue_many([Queue.prepare_data(stamp) for _ in range(count)])


def one() -> None:
    queue.enqueue(stamp)


def work() -> None:
    become("rq", "worker", "--url", URL, "--quiet")


if __name__ == "__main__":
    play(many, one, work)
