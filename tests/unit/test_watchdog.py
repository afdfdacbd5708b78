"""The watchdog with a clock and an end that the test owns: what ends the process, and what must not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest
from structlog.testing import capture_logs

from common.watchdog import Watchdog
from tests.until import until

LIMIT_S = 10.0
LOOK_EVERY_S = LIMIT_S / 10


class World:
    """Seconds that a test owns, and the exit codes with which its process would have ended."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ended: list[int] = []
        self.watchdog = Watchdog(LIMIT_S, clock=lambda: self.now_s, end=self.ended.append)

    def pass_by(self, seconds: float) -> None:
        """Let time pass, with the watchdog looking as often as it does."""
        for _ in range(round(seconds / LOOK_EVERY_S)):
            self.now_s += LOOK_EVERY_S
            self.watchdog.look()


@pytest.fixture
def world():
    return World()


def test_a_step_without_a_sign_of_life_ends_the_process(world):
    """A thread that hangs cannot be ended; its process can, and says which step it was."""
    with capture_logs() as logs, world.watchdog.step("model on a chunk"):
        world.pass_by(LIMIT_S)
        assert world.ended == []
        world.pass_by(LOOK_EVERY_S)

    assert world.ended == [1]
    [line] = logs
    assert line["event"] == "process_given_up"
    assert line["why"] == "model on a chunk: no sign of life for 11.0 s, expected one in 10 s (STTREAM_STALL_S)"


def test_signs_of_life_keep_a_slow_step_alive(world):
    """A long chunk on a slow machine is work, not a hang."""
    with world.watchdog.step("model") as alive:
        for _ in range(10):
            world.pass_by(LIMIT_S)
            alive()

    assert world.ended == []


def test_one_hanging_step_among_busy_ones_is_seen(world):
    """The other threads of an engine go on while one hangs."""
    with world.watchdog.step("hanging"), world.watchdog.step("busy") as alive:
        for _ in range(11):
            alive()
            world.pass_by(LOOK_EVERY_S)

    assert world.ended == [1]


def test_time_outside_of_steps_does_not_count(world):
    """A consumer that waits for work for days is not hung."""
    with world.watchdog.step("before"):
        pass
    world.pass_by(100 * LIMIT_S)

    assert world.ended == []


def test_a_process_that_was_paused_is_not_ended_for_it(world):
    """SIGSTOP, or a machine that was frozen for an hour: its steps get their whole time again."""
    with world.watchdog.step("model"):
        world.pass_by(LOOK_EVERY_S)
        world.now_s += 3600
        world.pass_by(LIMIT_S)
        assert world.ended == []
        world.pass_by(2 * LOOK_EVERY_S)

    assert world.ended


def test_giving_up_says_why_and_ends(world):
    """Whoever knows that the process is broken need not wait for the limit."""
    with capture_logs() as logs:
        world.watchdog.give_up("the model fails on silence too")

    assert world.ended == [1]
    assert logs[0]["why"] == "the model fails on silence too"


def test_a_log_that_hangs_does_not_keep_the_process_alive(world, monkeypatch):
    """A full pipe that nobody reads may be the very reason for the hang."""
    read = threading.Event()
    monkeypatch.setattr("common.watchdog._LAST_WORDS_S", 0.01)
    monkeypatch.setattr("common.watchdog.log.error", lambda *_, **__: read.wait(60), raising=False)
    talking = threading.Thread(target=world.watchdog.give_up, args=("hung",), daemon=True)
    talking.start()
    deadline_s = time.monotonic() + 30
    while not world.ended and time.monotonic() < deadline_s:
        read.wait(0.01)

    assert world.ended[:1] == [1]
    read.set()
    talking.join(30)


def test_a_process_that_can_start_no_thread_is_ended_too(world, monkeypatch):
    """A limit of processes that is reached makes a process useless, and must not make it immortal."""

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    world.watchdog.give_up("no thread can be started")

    assert world.ended == [1]


async def test_an_event_loop_that_hangs_ends_the_process():
    """It settles nothing any more, while the thread of the leases keeps its jobs."""
    ended = threading.Event()
    with Watchdog(0.2, end=lambda code: ended.set()) as watchdog:
        watching = asyncio.create_task(watchdog.watch_event_loop())
        await until(lambda: watchdog._steps, within_s=5, what="the event loop being watched")
        assert ended.wait(30)  # blocks the event loop, as a hang does
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
