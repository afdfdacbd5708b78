"""tarsk: a supervisor in Rust and one child in Python with its 100 slots."""

from __future__ import annotations

from stamps import URL, become, play, stamp
from tarsk import App

app = App(broker=URL)


@app.task(name="noop", timeout=60)
def noop() -> None:
    stamp()


def one() -> None:
    noop.send()


def many(count: int) -> None:
    for _ in range(count):
        noop.send()


def work() -> None:
    become("tarsk", "worker", "--app", "with_tarsk:app", "--broker", URL, "--children", "1")


if __name__ == "__main__":
    play(many, one, work)
