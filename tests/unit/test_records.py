"""Records: ids that are file names, specs that are the same job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.options import Options
from common.records import Job, JobSpec, State, check_id


@pytest.mark.parametrize("job_id", ["a", "call-2024.03_17", "A" * 128, "_x", "0199c5d2-7b6e-7c31"])
def test_a_plain_file_name_is_an_id(job_id):
    """Ids are chosen by clients, who already have names for their recordings."""
    assert check_id(job_id) == job_id


@pytest.mark.parametrize(
    "job_id",
    ["", ".", "..", "a/b", "a\\b", ".hidden", "-rf", "a.", "a b", "é", "a\n", "con", "NUL.txt", "lpt1", "A" * 129],
)
def test_an_id_that_is_no_safe_file_name_is_refused(job_id):
    """The id names files on any file system: it must not leave the folder, hide, or name a device."""
    with pytest.raises(ValueError, match="id "):
        check_id(job_id)


@given(st.text(max_size=200))
def test_an_accepted_id_never_leaves_a_folder(text):
    """Whatever a client sends: either refused, or a name without separators."""
    try:
        check_id(text)
    except ValueError:
        return
    assert "/" not in text
    assert "\\" not in text
    assert not text.startswith(".")
    assert text.isascii()


def test_specs_are_equal_when_their_texts_are():
    """Submitting twice is the same job whatever the order of the fields and whether defaults are spelled out."""
    short = JobSpec(source="/a.wav", options=Options(language="en"))
    spelled = JobSpec.model_validate(
        {"options": {"beam_size": 5, "language": "en"}, "priority": "normal", "source": "/a.wav", "metadata": {}}
    )

    assert short.to_json() == spelled.to_json()
    assert short.to_json() != JobSpec(source="/a.wav", options=Options(language="de")).to_json()


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": ""},
        {"source": "a\0b"},
        {"source": "/a", "webhooks": {}},
        {"source": "/a", "max_attempts": 0},
        {"source": "/a", "options": {"language": "english"}},
        {"source": "/a", "options": {"beam": 1}},
        {"source": "/a", "metadata": {"k": 1}},
    ],
)
def test_a_wrong_spec_is_refused(wrong):
    """Unknown fields and values are mistakes, not wishes to ignore."""
    with pytest.raises(ValidationError):
        JobSpec.model_validate(wrong)


def test_a_job_is_read_from_its_hash():
    """The hash is text; the record has types."""
    spec = JobSpec(source="/a.wav", priority="high")
    fields = {
        "spec": spec.to_json(),
        "state": "running",
        "run": "2",
        "attempts": "1",
        "created_ms": "1000",
        "queued_ms": "1000",
        "started_ms": "2000",
        "progress": "0.25",
        "worker": "host-1-abc",
        "entry_id": "5-0",
        "error": '{"type":"engine_failed","detail":"out of memory"}',
        "cancel_requested": "1",
    }

    job = Job.from_hash("a", fields)

    assert (job.state, job.run, job.attempts, job.progress) == (State.RUNNING, 2, 1, 0.25)
    assert job.spec == spec
    assert job.error is not None
    assert job.error.type == "engine_failed"
    assert job.cancel_requested
