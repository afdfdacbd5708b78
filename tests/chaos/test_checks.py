"""A check that cannot fail is a defect: each invariant of the breaker is shown what it must see."""

from collections.abc import Callable

import orjson
import pytest

from bench.breaker.check import CHECKS, violations
from bench.breaker.evidence import Evidence, Row
from bench.breaker.ledger import Asked, Submission, Way
from common.formats import FORMATS
from common.keys import Keys

KEYS = Keys("sttream")


def sound() -> Evidence:
    """The end of a run in which all is well: one job completed, one failed, one cancelled."""
    good = Submission("good", Way.QUEUE, "/a.wav", "do re", batch_id="b", accepted=True)
    doomed = Submission("doomed", Way.HTTP, "/b.wav", None, accepted=True)
    cancelled = Submission("gone", Way.HTTP, "/a.wav", "do re", accepted=True, cancelled=Asked.GRANTED)
    body = orjson.dumps({"text": "do re"})
    return Evidence(
        KEYS,
        {job.id: job for job in (good, doomed, cancelled)},
        rows=[
            Row("good", 1, "completed", "b", None),
            Row("doomed", 1, "failed", None, "audio_unreadable"),
            Row("gone", 1, "cancelled", None, None),
        ],
        transcripts={"good": body.decode()},
        files={f"good.{kind}": body if kind == "json" else b"do re\n" for kind in FORMATS},
        published={"good": 1},
        hashes={
            "good": {"state": "completed", "run": "1"},
            "doomed": {"state": "failed", "run": "1", "dead_id": "1-1"},
            "gone": {"state": "cancelled", "run": "1"},
        },
        batches={"b": {"queued": 0, "completed": 1}},
        lengths={KEYS.results: 0, KEYS.delayed: 0},
        pending={KEYS.results: 0},
        dead=[{"id": "doomed", "reason": "audio_unreadable"}],
        ttl_s={KEYS.events: -1, KEYS.batch("b"): -1, KEYS.job("good"): 900, KEYS.job("doomed"): -1},
    )


def lose_a_job(evidence: Evidence) -> None:
    evidence.rows.remove(evidence.rows[0])


def do_a_job_twice(evidence: Evidence) -> None:
    evidence.rows.append(evidence.rows[0])


def store_a_stranger(evidence: Evidence) -> None:
    evidence.rows.append(Row("stranger", 1, "failed", None, None))


def fail_a_good_job(evidence: Evidence) -> None:
    evidence.rows[0] = Row("good", 1, "failed", "b", "attempts_spent")


def forget_a_cancellation(evidence: Evidence) -> None:
    evidence.rows[2] = Row("gone", 1, "completed", None, None)


def garble_a_transcript(evidence: Evidence) -> None:
    evidence.transcripts["good"] = '{"text":"do mi"}'


def lose_a_transcript(evidence: Evidence) -> None:
    evidence.transcripts.clear()


def lose_a_file(evidence: Evidence) -> None:
    del evidence.files["good.srt"]


def empty_a_file(evidence: Evidence) -> None:
    evidence.files["good.txt"] = b""


def cut_a_file(evidence: Evidence) -> None:
    evidence.files["good.json"] = evidence.files["good.json"][:-2]


def leave_a_temporary_file(evidence: Evidence) -> None:
    evidence.files[".good.txt.0123456789abcdef.part"] = b"do"


def leave_a_file_without_row(evidence: Evidence) -> None:
    evidence.files["gone.txt"] = b"do re\n"


def publish_late(evidence: Evidence) -> None:
    evidence.published = {"good": 2}


def publish_what_was_cancelled(evidence: Evidence) -> None:
    evidence.published = {"good": 1, "gone": 1}


def miscount_a_batch(evidence: Evidence) -> None:
    evidence.batches["b"]["running"] = 1


def leave_a_job_running(evidence: Evidence) -> None:
    evidence.hashes["good"]["state"] = "running"


def keep_a_hash_without_row(evidence: Evidence) -> None:
    evidence.hashes["stranger"] = {"state": "queued", "run": "1"}


def leave_an_entry(evidence: Evidence) -> None:
    evidence.lengths[KEYS.results] = 1


def leave_a_pending_entry(evidence: Evidence) -> None:
    evidence.pending[KEYS.results] = 1


def lose_a_dead_letter(evidence: Evidence) -> None:
    evidence.dead.clear()


def keep_a_dead_letter_too_many(evidence: Evidence) -> None:
    evidence.dead.append({"id": "good", "reason": "attempts_spent"})


def leak_a_key(evidence: Evidence) -> None:
    evidence.ttl_s[KEYS.job("good")] = -1


def leave_a_checkpoint(evidence: Evidence) -> None:
    evidence.ttl_s["{sttream}:parts:good"] = 600


def leave_a_process(evidence: Evidence) -> None:
    evidence.processes.append("17 (python)")


def leave_a_scratch_file(evidence: Evidence) -> None:
    evidence.scratch.append("tmpabc")


def complain(evidence: Evidence) -> None:
    evidence.complaints.append("writer-4 ended by itself, exit 1")


HARMS = [
    *(lose_a_job, do_a_job_twice, store_a_stranger, fail_a_good_job, forget_a_cancellation),
    *(garble_a_transcript, lose_a_transcript, lose_a_file, empty_a_file, cut_a_file),
    *(leave_a_temporary_file, leave_a_file_without_row, publish_late, publish_what_was_cancelled),
    *(miscount_a_batch, leave_a_job_running, keep_a_hash_without_row, leave_an_entry, leave_a_pending_entry),
    *(lose_a_dead_letter, keep_a_dead_letter_too_many, leak_a_key, leave_a_checkpoint),
    *(leave_a_process, leave_a_scratch_file, complain),
]


def test_a_run_in_which_all_is_well_passes():
    """Or every run would be called a failure, and nobody would look."""
    assert violations(sound()) == []


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_harm_is_seen(harm: Callable[[Evidence], None]):
    """The breaker's PASS is worth what its checks can see."""
    evidence = sound()
    harm(evidence)
    assert violations(evidence)


def test_every_check_can_fail():
    """One that no harm sets off might as well not be there."""
    seen = set()
    for harm in HARMS:
        evidence = sound()
        harm(evidence)
        seen |= {check for check in CHECKS if list(check(evidence))}
    assert seen == set(CHECKS)


def test_a_job_whose_answer_is_unknown_may_be_missing():
    """Whoever lost the answer was promised nothing."""
    evidence = sound()
    evidence.submissions = {**evidence.submissions, "unheard": Submission("unheard", Way.HTTP, "/a.wav", "do re")}
    assert violations(evidence) == []
