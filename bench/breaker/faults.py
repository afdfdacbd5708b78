"""The faults: what can go wrong, how often, and how it is done. `FAULTS` is the table."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.breaker.processes import children_of
from bench.breaker.proxy import Direction, Proxy
from deploy.ready import service_is_ready

if TYPE_CHECKING:
    from bench.breaker.line import Line
    from bench.breaker.processes import Member
    from bench.breaker.watch import Watch

# Beyond what any fault lasts: a service that does not come back must not keep the run.
_LONGEST_S = 60.0

Inject = Callable[["Scene"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault is done to, who watches, and where its chance comes from."""

    line: Line
    watch: Watch
    rng: random.Random

    def one_of(self, role: str) -> Member:
        """Return a service of a role."""
        return self.rng.choice(self.line.of(role))

    def a_proxy(self) -> Proxy:
        """Return one of the lines to the server."""
        return self.rng.choice(self.line.proxies)

    def seconds(self, least: float, most: float) -> float:
        """Return how long it lasts."""
        return self.rng.uniform(least, most)


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault; of a full deck of faults `weight` are of this kind."""

    name: str
    weight: int
    inject: Inject


def _kill(role: str) -> Inject:
    """SIGKILL; the consumer's jobs are noted, to see when each is begun again."""

    async def inject(scene: Scene) -> None:
        pid = await scene.one_of(role).send(signal.SIGKILL)
        if role == "consumer":
            await scene.watch.consumer_died(pid)

    return inject


def _stop(role: str) -> Inject:
    async def inject(scene: Scene) -> None:
        await scene.one_of(role).send(signal.SIGTERM)

    return inject


def _pause(role: str) -> Inject:
    """SIGSTOP for longer than the lease, then SIGCONT: it comes back believing that its entries are its own."""

    async def inject(scene: Scene) -> None:
        pid = await scene.one_of(role).send(signal.SIGSTOP)
        await _then_continue(pid, scene.seconds(1.5, 3) * scene.line.lease_s)

    return inject


async def _then_continue(pid: int, after_s: float) -> None:
    try:
        await asyncio.sleep(after_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def _kill_decoder(scene: Scene) -> None:
    """SIGKILL to a child of a consumer: a recording that crashes the decoder does the same."""
    consumer = scene.one_of("consumer")
    # One that has no decoder at its start ends, and says so: that is no secret to find.
    while await service_is_ready(consumer.health_url) is not None:  # noqa: ASYNC110 - health is asked for, not told
        await asyncio.sleep(0.1)
    decoders = children_of(await consumer.process.running())
    os.kill(scene.rng.choice(decoders), signal.SIGKILL)


async def _kill_server(scene: Scene) -> None:
    os.kill(await scene.line.server.running(), signal.SIGKILL)


async def _pause_server(scene: Scene) -> None:
    pid = await scene.line.server.running()
    os.kill(pid, signal.SIGSTOP)
    await _then_continue(pid, scene.seconds(0.5, 2) * scene.line.lease_s)


async def _cut(scene: Scene) -> None:
    scene.a_proxy().cut()


async def _cut_reply(scene: Scene) -> None:
    scene.a_proxy().cut_next_reply()


async def _slow(scene: Scene) -> None:
    proxy = scene.a_proxy()
    proxy.delay(scene.seconds(0.05, 0.8))
    await asyncio.sleep(scene.seconds(2, 6))
    proxy.restore()


def _silence(direction: Direction) -> Inject:
    async def inject(scene: Scene) -> None:
        scene.a_proxy().silence(direction)

    return inject


async def _kill_connections(scene: Scene) -> None:
    """Let the server close some connections, whoever has them."""
    clients = await scene.line.redis.client_list(_type="normal")
    for client in scene.rng.sample(clients, min(5, len(clients))):
        await scene.line.redis.client_kill_filter(_id=client["id"], skipme=True)


async def _stall_database(scene: Scene) -> None:
    """Hold the write lock, sometimes for longer than a writer waits for it."""
    await asyncio.to_thread(_hold_write_lock, scene.line.layout.database, scene.seconds(1, 8))


def _hold_write_lock(database: object, seconds: float) -> None:
    with contextlib.closing(sqlite3.connect(str(database), timeout=5, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")


async def _fill_disk(scene: Scene) -> None:
    pids = [await member.process.running() for member in scene.line.of("writer")]
    scene.line.disk.fill(pids)
    try:
        await asyncio.sleep(scene.seconds(1, 6))
    finally:
        scene.line.disk.free(pids)


async def _step_clock(scene: Scene) -> None:
    """Step the wall clock of one service, by a second up to days, and back."""
    clock = scene.rng.choice(scene.line.members).clock
    if clock is None:
        raise LookupError("there is no C compiler here to make clocks that can be stepped")
    clock.step(round(scene.rng.choice((-1, 1)) * 10 ** scene.seconds(0, 6)))
    await asyncio.sleep(scene.seconds(2, 8))
    clock.step(0)


FAULTS: Sequence[Fault] = (
    Fault("consumer killed", 10, _kill("consumer")),
    Fault("consumer paused", 6, _pause("consumer")),
    Fault("consumer stopped", 4, _stop("consumer")),
    Fault("decoder killed", 3, _kill_decoder),
    Fault("writer killed", 7, _kill("writer")),
    Fault("writer paused", 4, _pause("writer")),
    Fault("writer stopped", 3, _stop("writer")),
    Fault("producer killed", 3, _kill("producer")),
    Fault("producer paused", 2, _pause("producer")),
    Fault("producer stopped", 2, _stop("producer")),
    Fault("server killed", 5, _kill_server),
    Fault("server paused", 3, _pause_server),
    Fault("connections cut", 5, _cut),
    Fault("reply cut", 6, _cut_reply),
    Fault("line slow", 4, _slow),
    Fault("requests swallowed", 3, _silence(Direction.REQUESTS)),
    Fault("replies swallowed", 4, _silence(Direction.REPLIES)),
    Fault("connections killed", 5, _kill_connections),
    Fault("database stalled", 4, _stall_database),
    Fault("disk full", 4, _fill_disk),
    Fault("clock stepped", 4, _step_clock),
)


def deal(count: int, rng: random.Random, table: Sequence[Fault] = FAULTS) -> Iterator[Fault]:
    """Yield faults as from shuffled decks of cards: by chance, but each kind as often as its weight says."""
    deck: list[Fault] = []
    for _ in range(count):
        if not deck:
            deck = [fault for fault in table for _ in range(fault.weight)]
            rng.shuffle(deck)
        yield deck.pop()


class Trouble:
    """Injects the faults of a run, spread evenly over its time."""

    def __init__(self, line: Line, watch: Watch, seed: int, count: int, only: Sequence[str] = ()) -> None:
        """Deal the faults.

        Args:
            line: what they are done to.
            watch: told of what it must know.
            seed: the same seed deals the same faults.
            count: how many.
            only: names of the kinds to deal; all by default.
        """
        self.done: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._line, self._watch = line, watch
        self._rng = random.Random(f"faults {seed}")
        self._plan = list(deal(count, self._rng, [fault for fault in FAULTS if not only or fault.name in only]))

    async def run(self, duration_s: float) -> None:
        """Inject all of them; returns when the last one is over."""
        async with asyncio.TaskGroup() as injecting:
            for fault in self._plan:
                await asyncio.sleep(duration_s / len(self._plan) * self._rng.uniform(0.5, 1.5))
                scene = Scene(self._line, self._watch, random.Random(self._rng.random()))
                injecting.create_task(self._inject(fault, scene))

    async def _inject(self, fault: Fault, scene: Scene) -> None:
        try:
            async with asyncio.timeout(_LONGEST_S):
                await fault.inject(scene)
        except Exception as exc:  # noqa: BLE001 - it met another fault (the server is away), or cannot be done here
            self.left_out[f"{fault.name} ({str(exc)[:80] or type(exc).__name__})"] += 1
        else:
            self.done[fault.name] += 1
