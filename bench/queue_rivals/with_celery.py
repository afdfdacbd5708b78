"""celery: 8 threads, no results, prefetching 16 for each."""

from __future__ import annotations

from celery import Celery
from stamps import URL, become, play, stamp

app = Celery("with_celery", broker=URL)
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=16, broker_connection_retry_on_startup=True)


@app.task(name="noop")
def noop() -> None:
    stamp()


def one() -> None:
    noop.delay()


def many(count: int) -> None:
    for _ in range(count):
        noop.delay()


def work() -> None:
    quiet = ("--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat")
    become("celery", "-A", "with_celery", "worker", "--pool", "threads", "--concurrency", "8", *quiet)


if __name__ == "__main__":
    play(many, one, work)
