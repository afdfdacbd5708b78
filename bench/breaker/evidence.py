"""What a run left: everything that can be checked afterwards, read once, into plain values."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from common.keys import TRANSCRIBERS, WRITERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bench.breaker.ledger import Submission
    from bench.breaker.line import Layout, Line
    from common.keys import Keys

# Of one complaint about a log, in characters.
_SHOWN = 600


@dataclass(frozen=True, slots=True)
class Row:
    """A terminal record in the database."""

    id: str
    run: int
    state: str
    batch_id: str | None
    error: str | None


@dataclass(slots=True)
class Evidence:
    """The end of a run."""

    keys: Keys
    submissions: Mapping[str, Submission]
    complaints: list[str] = field(default_factory=list)
    """What was answered, or happened to a process, that never should."""
    rows: list[Row] = field(default_factory=list)
    transcripts: dict[str, str] = field(default_factory=dict)
    """Bodies in the database, by job id."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What lies in the results folder, by name."""
    published: Mapping[str, int] = field(default_factory=dict)
    """How often a transcript of each job was passed to the writers."""
    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    """The `job:<id>` hashes, by job id."""
    batches: dict[str, dict[str, int]] = field(default_factory=dict)
    """The counters of each batch by state."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Entries by key: of the lanes, the results, the delayed set."""
    pending: dict[str, int] = field(default_factory=dict)
    """Pending entries by stream."""
    dead: list[dict[str, str]] = field(default_factory=list)
    """Dead letters."""
    ttl_s: dict[str, int] = field(default_factory=dict)
    """Every key on the server, with its time to live; -1 for none."""
    processes: list[str] = field(default_factory=list)
    """What still ran when all was stopped."""
    scratch: list[str] = field(default_factory=list)
    """What lay in the scratch folder."""


async def read_server(evidence: Evidence, redis: Any) -> None:
    """Read what is left on the server."""
    keys = evidence.keys
    job_prefix, batch_prefix = keys.job(""), keys.batch("")
    async for key in redis.scan_iter(count=1000):
        evidence.ttl_s[key] = await redis.ttl(key)
        if key.startswith(job_prefix):
            evidence.hashes[key.removeprefix(job_prefix)] = await redis.hgetall(key)
        elif key.startswith(batch_prefix):
            counters = await redis.hgetall(key)
            evidence.batches[key.removeprefix(batch_prefix)] = {state: int(n) for state, n in counters.items()}
    for stream, group in [*((lane, TRANSCRIBERS) for lane in keys.lanes), (keys.results, WRITERS)]:
        evidence.lengths[stream] = await redis.xlen(stream)
        evidence.pending[stream] = (await redis.xpending(stream, group))["pending"]
    evidence.lengths[keys.delayed] = await redis.zcard(keys.delayed)
    evidence.dead = [fields for _, fields in await redis.xrange(keys.dead)]


def read_disk(evidence: Evidence, layout: Layout) -> None:
    """Read what is left in the database and the folders."""
    with contextlib.closing(sqlite3.connect(layout.database)) as database:
        rows = database.execute("SELECT id, run, state, batch_id, error_type FROM jobs")
        evidence.rows = [Row(*row) for row in rows]
        evidence.transcripts = dict(database.execute("SELECT job_id, body FROM transcripts").fetchall())
    evidence.files = {path.name: path.read_bytes() for path in layout.results.iterdir()}
    evidence.scratch = [path.name for path in layout.scratch.iterdir()]


def read_logs(layout: Layout, names: Iterable[str]) -> list[str]:
    """Return what no fault explains in the logs of the services: errors, and lines that are not theirs."""
    found = []
    for name in names:
        lines = (layout.logs / f"{name}.log").read_text(errors="replace").splitlines()
        for is_record, run in itertools.groupby(lines, key=lambda line: line.startswith("{")):
            together = list(run)
            odd = [line for line in together if '"level":"error"' in line] if is_record else [" / ".join(together)]
            found += [f"{name} logged: {_shortened(text)}" for text in odd]
    return found


def _shortened(text: str) -> str:
    return text if len(text) < _SHOWN else f"{text[: _SHOWN // 3]} … {text[-_SHOWN // 3 * 2 :]}"


async def count_open(line: Line) -> dict[str, int]:
    """Return what is under way still, by key; all zero when everything is settled."""
    keys, redis = line.keys, line.redis
    lengths = {stream: await redis.xlen(stream) for stream in (*keys.lanes, keys.results)}
    return {**lengths, keys.delayed: await redis.zcard(keys.delayed)}


async def describe_open(line: Line, most: int = 12) -> list[str]:
    """Return a line about each of the first jobs that are under way still."""
    keys, redis = line.keys, line.redis
    told = []
    for stream in (*keys.lanes, keys.results):
        for entry_id, fields in await redis.xrange(stream, count=most):
            told.append(f"{stream} {entry_id}: {await _about(redis, keys, fields.get('id', ''))}")
    told += [f"{keys.delayed}: {await _about(redis, keys, id_)}" for id_ in await redis.zrange(keys.delayed, 0, most)]
    return told[:most]


async def _about(redis: Any, keys: Keys, job_id: str) -> str:
    shown = ("state", "run", "attempts", "worker", "entry_id", "cancel_requested", "error")
    values = await redis.hmget(keys.job(job_id), *shown)
    return f"job {job_id} " + orjson.dumps({k: v for k, v in zip(shown, values, strict=True) if v}).decode()
