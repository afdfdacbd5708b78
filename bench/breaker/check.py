"""The invariants: each looks at the evidence of a run and says what is wrong with it.

`CHECKS` is the list of what a run promises. Each of them is shown to fail on evidence made by hand.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import orjson

from common.formats import FORMATS

if TYPE_CHECKING:
    from bench.breaker.evidence import Evidence

Check = Callable[["Evidence"], Iterator[str]]


def every_accepted_job_has_one_row(evidence: Evidence) -> Iterator[str]:
    """None is lost, none is twice, none comes from nowhere."""
    rows = Counter(row.id for row in evidence.rows)
    for job in evidence.submissions.values():
        if job.accepted and not rows[job.id]:
            yield f"job {job.id} ({job.way}) was accepted and has no row"
    for job_id, count in rows.items():
        if count > 1:
            yield f"job {job_id} has {count} rows"
        if job_id not in evidence.submissions:
            yield f"job {job_id} has a row and was never submitted"


def every_job_ended_as_it_may(evidence: Evidence) -> Iterator[str]:
    """Good jobs are completed, doomed ones failed, cancelled ones cancelled."""
    for row in evidence.rows:
        job = evidence.submissions.get(row.id)
        if job and row.state not in job.may_end_as:
            wanted = " or ".join(sorted(job.may_end_as))
            yield f"job {row.id} ended as {row.state} ({row.error or 'no error'}), expected {wanted}"


def every_completed_job_has_its_text(evidence: Evidence) -> Iterator[str]:
    """The database holds what the recording says, for completed jobs and no others."""
    completed = {row.id for row in evidence.rows if row.state == "completed"}
    for job_id in completed ^ evidence.transcripts.keys():
        yield f"job {job_id}: a completed row and a transcript do not go together"
    for job_id in completed & evidence.transcripts.keys():
        job = evidence.submissions.get(job_id)
        said = orjson.loads(evidence.transcripts[job_id])["text"]
        if job and job.text is not None and said != job.text:
            yield f"job {job_id}: the database says {said[:60]!r}, the recording {job.text[:60]!r}"


def every_file_is_whole(evidence: Evidence) -> Iterator[str]:
    """Completed jobs have all their files, saying what the recording says; nothing else lies in the folder."""
    expected = {f"{row.id}.{kind}" for row in evidence.rows if row.state == "completed" for kind in FORMATS}
    for name in sorted(expected - evidence.files.keys()):
        yield f"file {name} is missing"
    for name in sorted(evidence.files.keys() - expected):
        yield f"file {name} belongs to no completed job"
    for name in sorted(expected & evidence.files.keys()):
        job = evidence.submissions.get(name.rpartition(".")[0])
        if job and job.text is not None and (wrong := _wrong_in(name, evidence.files[name], job.text)):
            yield f"file {name}: {wrong}"


def _wrong_in(name: str, content: bytes, text: str) -> str | None:
    if name.endswith(".json"):
        try:
            said = orjson.loads(content)["text"]
        except (orjson.JSONDecodeError, KeyError):
            return "is not whole"
        return None if said == text else f"says {said[:60]!r}, the recording {text[:60]!r}"
    words = content.decode().split()
    if name.endswith(".txt"):  # a line for each chunk
        return None if words == text.split() else f"says {' '.join(words)[:60]!r}, the recording {text[:60]!r}"
    missing = [word for word in text.split() if word not in words]
    return f"lacks {missing[0]!r}" if missing else None


def every_text_was_published_once(evidence: Evidence) -> Iterator[str]:
    """A transcript passes to the writers once, whoever wakes up late."""
    for row in evidence.rows:
        expected = 1 if row.state == "completed" else 0
        if evidence.published.get(row.id, 0) != expected:
            yield f"job {row.id} ({row.state}) was published {evidence.published.get(row.id, 0)} times"


def batch_counters_equal_the_records(evidence: Evidence) -> Iterator[str]:
    """The counters of each batch say what the rows say."""
    recorded: dict[str, Counter[str]] = defaultdict(Counter)
    for row in evidence.rows:
        if row.batch_id:
            recorded[row.batch_id][row.state] += 1
    for batch_id in sorted(recorded.keys() | evidence.batches.keys()):
        counted = {state: count for state, count in evidence.batches.get(batch_id, {}).items() if count}
        if counted != dict(recorded[batch_id]):
            yield f"batch {batch_id} counts {counted}, the records say {dict(recorded[batch_id])}"


def hashes_agree_with_the_records(evidence: Evidence) -> Iterator[str]:
    """What Redis still says of a job is what the database says."""
    rows = {row.id: row for row in evidence.rows}
    for job_id, fields in evidence.hashes.items():
        row = rows.get(job_id)
        found = (fields.get("state"), fields.get("run", "1"))
        if row is None:
            yield f"job {job_id} is {found[0]} on the server and has no row"
        elif found != (row.state, str(row.run)):
            yield f"job {job_id} is {found} on the server and {(row.state, row.run)} in the database"


def nothing_is_under_way(evidence: Evidence) -> Iterator[str]:
    """Streams, pending lists and the delayed set are empty."""
    for key, length in evidence.lengths.items():
        if length:
            yield f"{key} still holds {length}"
    for stream, count in evidence.pending.items():
        if count:
            yield f"{stream} has {count} pending entries"


def dead_letters_are_the_failed_jobs(evidence: Evidence) -> Iterator[str]:
    """Each failed job has one dead letter, and there are no others."""
    letters = Counter(letter.get("id", "") for letter in evidence.dead)
    failed = Counter(row.id for row in evidence.rows if row.state == "failed")
    for job_id in failed - letters:
        yield f"job {job_id} failed and has no dead letter"
    for job_id in letters - failed:
        reasons = ", ".join(letter["reason"] for letter in evidence.dead if letter.get("id", "") == job_id)
        yield f"job {job_id!r} has more dead letters ({reasons}) than failures"


def every_key_has_its_time(evidence: Evidence) -> Iterator[str]:
    """Whatever is left on the server is declared, or goes by itself; no checkpoint is left."""
    keys = evidence.keys
    declared = {*keys.lanes, keys.results, keys.delayed, keys.dead, keys.events, keys.epoch}
    declared |= {keys.batch(batch_id) for batch_id in evidence.batches}
    # A dead letter keeps its job's hash until somebody revives or drops it.
    declared |= {keys.job(letter.get("id", "")) for letter in evidence.dead}
    checkpoints = keys.job("").replace(":job:", ":parts:")
    for key, ttl_s in sorted(evidence.ttl_s.items()):
        if key.startswith(checkpoints):
            yield f"checkpoint {key} is left"
        elif ttl_s < 0 and key not in declared:
            yield f"key {key} has no time to live"


def nothing_is_left_behind(evidence: Evidence) -> Iterator[str]:
    """No process, no scratch file."""
    for process in evidence.processes:
        yield f"process {process} is left"
    for name in evidence.scratch:
        yield f"scratch file {name} is left"


def nothing_odd_was_seen(evidence: Evidence) -> Iterator[str]:
    """No answer and no end of a process that never should be."""
    yield from evidence.complaints


CHECKS: Sequence[Check] = (
    every_accepted_job_has_one_row,
    every_job_ended_as_it_may,
    every_completed_job_has_its_text,
    every_file_is_whole,
    every_text_was_published_once,
    batch_counters_equal_the_records,
    hashes_agree_with_the_records,
    nothing_is_under_way,
    dead_letters_are_the_failed_jobs,
    every_key_has_its_time,
    nothing_is_left_behind,
    nothing_odd_was_seen,
)


def violations(evidence: Evidence) -> list[str]:
    """Return what is wrong, all of it."""
    return [wrong for check in CHECKS for wrong in check(evidence)]
