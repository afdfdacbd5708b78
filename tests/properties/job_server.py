"""What the server holds, read in one round trip, and what must be true of it whatever was called."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.keys import TRANSCRIBERS, WRITERS
from common.records import Job, State
from tests.properties.stream_model import as_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from common.keys import Keys


@dataclass(frozen=True)
class Seen:
    """All that the server holds but times, as it stood after one call."""

    names: frozenset[str]
    """Of all keys."""
    streams: Mapping[str, Mapping[str, Mapping[str, str]]]
    """Lanes and results: fields by entry id."""
    pending: Mapping[str, Mapping[str, tuple[str, int]]]
    """Consumer and delivery count by entry id."""
    delivered: Mapping[str, str]
    """The highest entry id that each stream's group has delivered."""
    added: Mapping[str, int]
    """Entries that each stream has had over its life."""
    last_ids: Mapping[str, str]
    """The highest entry id that each stream has had."""
    letters: Mapping[str, Mapping[str, str]]
    delayed: frozenset[str]
    hashes: Mapping[str, Mapping[str, str]]
    """Of the jobs that have one."""
    parts: Mapping[str, Mapping[str, str]]
    """Of the jobs that have some."""
    expiring: frozenset[str]
    """Jobs whose hash has a time to live."""
    batches: Mapping[str, Mapping[str, int]]
    events: Sequence[tuple[str, str]]
    """New ones: job id, and state or progress."""
    last_event: str


async def look(redis: Redis, keys: Keys, job_ids: Sequence[str], batch_ids: Sequence[str], after: str) -> Seen:
    """Read everything; of the events those after one."""
    streams = (*keys.lanes, keys.results)
    pipeline: Any = redis.pipeline(transaction=False)
    pipeline.keys()
    for stream in streams:
        pipeline.xrange(stream)
        pipeline.xpending_range(stream, WRITERS if stream == keys.results else TRANSCRIBERS, "-", "+", 1000)
        pipeline.xinfo_stream(stream)
        pipeline.xinfo_groups(stream)
    for job_id in job_ids:
        pipeline.hgetall(keys.job(job_id))
        pipeline.ttl(keys.job(job_id))
        pipeline.hgetall(keys.parts(job_id))
    for batch_id in batch_ids:
        pipeline.hgetall(keys.batch(batch_id))
    pipeline.xrange(keys.dead).zrange(keys.delayed, 0, -1).xrange(keys.events, f"({after}")
    replies = iter(await pipeline.execute())

    names = next(replies)
    of_streams = {stream: (dict(next(replies)), next(replies), next(replies), next(replies)) for stream in streams}
    jobs = {job_id: (next(replies), next(replies), next(replies)) for job_id in job_ids}
    batches = {batch_id: next(replies) for batch_id in batch_ids}
    letters, delayed, events = replies
    return Seen(
        names=frozenset(names),
        streams={stream: entries for stream, (entries, _, _, _) in of_streams.items()},
        pending={
            stream: {held["message_id"]: (held["consumer"], held["times_delivered"]) for held in pending}
            for stream, (_, pending, _, _) in of_streams.items()
        },
        delivered={stream: group["last-delivered-id"] for stream, (_, _, _, [group]) in of_streams.items()},
        added={stream: told["entries-added"] for stream, (_, _, told, _) in of_streams.items()},
        last_ids={stream: told["last-generated-id"] for stream, (_, _, told, _) in of_streams.items()},
        letters=dict(letters),
        delayed=frozenset(delayed),
        hashes={job_id: found for job_id, (found, _, _) in jobs.items() if found},
        parts={job_id: done for job_id, (_, _, done) in jobs.items() if done},
        expiring=frozenset(job_id for job_id, (_, ttl_s, _) in jobs.items() if ttl_s >= 0),
        batches={
            key: {state: int(text) for state, text in found.items() if text != "0"} for key, found in batches.items()
        },
        events=[(fields["id"], fields.get("state") or fields["progress"]) for _, fields in events],
        last_event=events[-1][0] if events else after,
    )


def check_promises(seen: Seen, keys: Keys, forgotten: Mapping[tuple[str, str], int]) -> None:
    """Check what does not depend on what was called.

    Args:
        seen: the server.
        keys: its names.
        forgotten: jobs without a hash which their batch still counts, by batch and state.
    """
    declared = {*seen.streams, keys.delayed, keys.dead, keys.events, keys.epoch}
    per_id = (keys.job(""), keys.batch(""), keys.parts(""))
    assert not [name for name in seen.names - declared if not name.startswith(per_id)], "an undeclared key"
    for stream, pending in seen.pending.items():
        assert pending.keys() <= seen.streams[stream].keys(), f"{stream}: pending without a payload"
        passed_over = [
            entry_id
            for entry_id in seen.streams[stream].keys() - pending.keys()
            if as_number(entry_id) <= as_number(seen.delivered[stream])
        ]
        assert not passed_over, f"{stream}: nobody holds {passed_over}, and nobody will be given them"
    jobs = {job_id: Job.from_hash(job_id, fields) for job_id, fields in seen.hashes.items()}
    for job in jobs.values():
        _check_place(job, seen, keys)
    for dead_id, letter in seen.letters.items():
        if "stream" not in letter:
            job = jobs[letter["id"]]
            assert job.dead_id == dead_id, f"{job} has a dead letter {dead_id} that it does not know"
            assert job.id not in seen.expiring, f"{job} expires before its dead letter {dead_id}"
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for (batch_id, state), count in forgotten.items():
        counted[batch_id][state] += count
    for job in jobs.values():
        counted[job.spec.batch_id or ""][job.state.value] += 1
    for batch_id, counters in seen.batches.items():
        assert counters == dict(counted[batch_id]), f"the counters of batch {batch_id}"


def _check_place(job: Job, seen: Seen, keys: Keys) -> None:
    """Check that a job which has not ended is in exactly one place, and one that has in none."""
    on_lanes = [
        (lane, entry_id)
        for lane in keys.lanes
        for entry_id in seen.streams[lane]
        if entry_id == job.entry_id and lane == keys.lane(job.spec.priority)
    ]
    results = [
        entry_id
        for entry_id, fields in seen.streams[keys.results].items()
        if (fields["id"], int(fields["run"])) == (job.id, job.run)
    ]
    places = (len(on_lanes), int(job.id in seen.delayed), len(results))
    match job.state:
        case State.QUEUED | State.RUNNING:
            assert places == (1, 0, 0), f"{job}: {places}"
        case State.SCHEDULED:
            assert places == (0, 1, 0), f"{job}: {places}"
        case State.TRANSCRIBED:
            assert places == (0, 0, 1), f"{job}: {places}"
        case _:
            assert places[:2] == (0, 0), f"{job}: {places}"
            assert places[2] <= 1, f"{job}: {places}"
    if not job.terminal:
        assert job.id not in seen.expiring, f"{job} expires before it has ended"
