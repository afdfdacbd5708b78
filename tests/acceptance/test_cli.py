"""The verbs against a running stack, as a user types them."""

import json
import secrets

import pytest

from tests.acceptance.stacks import words
from tests.recordings import EXAMPLES

pytestmark = pytest.mark.xdist_group("cli")  # one stack for all of them
CLIP = EXAMPLES / "austen-5-himself.ogg"
SAID = "he might even have been made amiable himself"


@pytest.fixture
def job_id():
    return f"cli-{secrets.token_hex(4)}"


@pytest.fixture
def done(stack, job_id):
    """The id of a job that is completed."""
    assert stack.run("submit", str(CLIP), "--id", job_id, "--wait").returncode == 0
    return job_id


@pytest.fixture
def failed(stack, tmp_path, job_id):
    """The id of a job that has failed: a text that calls itself a recording, sent by upload."""
    (tmp_path / "notes.mp3").write_text("these are notes, not a recording\n" * 20)
    result = stack.run("submit", str(tmp_path / "notes.mp3"), "--id", job_id, "--upload", "--wait")
    assert result.returncode == 1, result.stderr
    yield job_id
    stack.run("dead", "drop", job_id)


def test_submit_and_wait_prints_what_was_said(stack):
    """`sttream submit FILE --wait | less` is the shortest way to a transcript: nothing but the words on stdout."""
    result = stack.run("submit", CLIP.name, "--wait", cwd=EXAMPLES)
    assert (result.returncode, result.stderr) == (0, "")
    assert words(result.stdout) == words(SAID)


@pytest.mark.parametrize(
    ("format_", "starts"), [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n"), ("tsv", "start\tend\ttext\n")]
)
def test_waiting_can_end_in_another_format(stack, format_, starts):
    """Subtitles come by the same command."""
    result = stack.run("submit", str(CLIP), "--wait", "--format", format_)
    assert result.stdout.startswith(starts)


def test_several_sources_have_a_line_each(stack):
    """A script reads ids from the first column."""
    clips = [*sorted(map(str, EXAMPLES.glob("*.wav"))), str(CLIP)]
    lines = stack.run("submit", *clips).stdout.splitlines()
    assert [line.split()[2] for line in lines] == clips


def test_one_wrong_source_does_not_keep_the_others_back(stack):
    """A typing mistake in the second of ten names is told, and nine jobs run."""
    result = stack.run("submit", str(CLIP), str(EXAMPLES / "typo.ogg"), "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["source"] == str(CLIP)
    assert "typo.ogg" in result.stderr


def test_the_same_id_is_the_same_job(stack, done):
    """Whoever is not sure whether a submit arrived just repeats it."""
    again = stack.run("submit", str(CLIP), "--id", done, "--json")
    assert (again.returncode, json.loads(again.stdout)["state"]) == (0, "completed")

    other = stack.run("submit", str(CLIP), "--id", done, "--priority", "high")
    assert other.returncode == 1
    assert done in other.stderr


def test_a_job_can_be_shown(stack, done):
    """The first question of support is what became of a job."""
    job = json.loads(stack.run("status", done, "--json").stdout)
    assert (job["id"], job["state"], job["source"]) == (done, "completed", str(CLIP))
    assert f"source       {CLIP}" in stack.run("status", done).stdout


def test_options_and_metadata_travel_with_the_job(stack, job_id):
    """What was asked for can be seen afterwards."""
    stack.run(
        "submit", str(CLIP), "--id", job_id, "--option", "beam_size=1", "--language", "en", "--metadata", "case=7"
    )
    job = json.loads(stack.run("status", job_id, "--json").stdout)
    assert (job["options"]["beam_size"], job["options"]["language"], job["metadata"]) == (1, "en", {"case": "7"})


def test_a_transcript_comes_again_in_any_format(stack, done):
    """Results stay readable after the submit's terminal is closed."""
    found = json.loads(stack.run("transcript", done, "--format", "json").stdout)
    assert (found["job_id"], words(found["text"])) == (done, words(SAID))
    short = stack.run("transcript", done, "--json").stdout
    assert (json.loads(short), short[-1]) == (found, "\n")


def test_what_is_unknown_is_wrong_use(stack):
    """A mistyped id is told apart from a job that failed."""
    result = stack.run("transcript", "no-such-job")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no-such-job" in result.stderr


def test_a_failed_job_is_exit_code_1_with_its_reason(stack, failed):
    """Scripts branch on the code; people read why."""
    assert stack.run("transcript", failed).returncode == 1
    assert "audio_unreadable" in stack.run("status", failed).stdout


def test_a_finished_job_cannot_be_cancelled(stack, done):
    """A cancel that comes too late must not look like one that worked."""
    result = stack.run("cancel", done)
    assert result.returncode == 1
    assert "completed" in result.stderr


def test_events_of_a_job_end_with_it(stack, done):
    """`sttream events ID` in a script returns when the job is done."""
    result = stack.run("events", done, "--json")
    assert result.returncode == 0
    assert "completed" in result.stdout.splitlines()[-1]


def test_the_queue_shows_its_consumers(stack):
    """An operator sees at a glance whether anybody works."""
    stats = json.loads(stack.run("queue", "--json").stdout)
    assert stats["queue"] == "sttream"
    assert stats["consumers"][0]["name"] in stack.run("queue").stdout


def test_dead_letters_are_listed_shown_revived_and_dropped(stack, failed):
    """An operator who has mended a cause runs the failed jobs again, or lets them go."""
    listed = [json.loads(line) for line in stack.run("dead", "ls", "--json").stdout.splitlines()]
    assert failed in {letter["id"] for letter in listed}
    assert failed in [line.split()[0] for line in stack.run("dead", "ls").stdout.splitlines()]
    assert "audio_unreadable" in stack.run("dead", "show", failed).stdout

    assert stack.run("dead", "revive", failed).stdout == "1 revived\n"
    assert stack.run("events", failed).returncode == 0

    assert stack.run("dead", "drop", failed).stdout == "1 dropped\n"
    assert stack.run("dead", "show", failed).returncode == 2


def test_a_batch_is_queued_once(stack):
    """After a cut connection, the same command goes on where it stopped."""
    first = stack.run("batch", str(EXAMPLES), "--wait", "--json")
    assert first.returncode == 0, first.stderr
    assert {json.loads(line)["state"] for line in first.stdout.splitlines()} == {"completed"}

    again = stack.run("batch", str(EXAMPLES))
    assert again.stdout == "5 files: 0 submitted, 5 known before\n"


def test_a_batch_with_a_bad_recording_says_so(stack, tmp_path):
    """One unreadable file among thousands shows in the exit code and the summary."""
    result = stack.run("batch", str(tmp_path.parent), "--pattern", "*.nothing")
    assert result.returncode == 2
    (tmp_path / "a.mp3").write_text("x")

    outside = stack.run("batch", str(tmp_path))
    assert outside.returncode == 1
    assert outside.stdout == "1 file: 0 submitted, 0 known before, 1 refused\n"
    assert outside.stderr.startswith(f"Error: {tmp_path / 'a.mp3'}: source_outside_roots: ")
    assert len(outside.stderr.splitlines()) == 1


def test_a_service_imports_only_its_own_side():
    """A producer's host needs no model library, and a consumer's no HTTP routes."""
    import subprocess
    import sys

    code = "import sys, producer.app; print([name for name in sys.modules if name.split('.')[0] in ('consumer', 'av')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
