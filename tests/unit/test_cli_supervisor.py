"""Services as processes: started again, stopped, shown."""

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace

import click
import pytest
import structlog

from common.errors import DataLost, SettingsError
from deploy.follow import Follower, is_routine, last_words, readable
from deploy.supervisor import Service, Supervised
from tests.acceptance.stacks import runs
from tests.until import until

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"


@pytest.fixture
def service(tmp_path):
    def service(code, stop_s=10.0):
        command, log = (sys.executable, "-c", code), tmp_path / "clock.log"
        return Service("clock", command, {}, log, stop_s, tmp_path, "begin anew: `sttream up --accept-data-loss`")

    return service


async def test_a_service_that_dies_is_started_again_after_longer_and_longer_waits(service):
    """A service that cannot run must not keep a processor busy, and one that can is soon back."""
    waits, enough = [], asyncio.Event()

    async def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 7:
            enough.set()
            await asyncio.Event().wait()

    supervised = Supervised(service("raise SystemExit(1)"), clock=lambda: 0.0, sleep=sleep)
    with structlog.testing.capture_logs() as lines:
        supervised.start()
        await asyncio.wait_for(enough.wait(), 30)
        await supervised.stop()

    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert supervised.last_exit == "exit 1"
    told = [(line["in_a_row"], line["log_level"]) for line in lines if line["event"] == "service_exited"]
    assert told == [(1, "warning"), (2, "warning"), *((number, "error") for number in range(3, 8))]


async def test_a_service_that_ran_well_starts_again_at_once(service):
    """Crashes that are hours apart are not one trouble."""
    waits, enough, clock = [], asyncio.Event(), iter(range(0, 10_000, 61))

    async def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            enough.set()
            await asyncio.Event().wait()

    supervised = Supervised(service("raise SystemExit(1)"), clock=lambda: next(clock), sleep=sleep)
    supervised.start()
    await asyncio.wait_for(enough.wait(), 30)
    await supervised.stop()

    assert waits == [1, 1, 1]


async def test_wrong_settings_are_not_tried_again(service):
    """Exit code 2 says the same however often it is asked; the reason is in the message."""
    supervised = Supervised(service("import sys; print('STTREAM_X is wrong'); sys.exit(2)"))
    with pytest.raises(SettingsError, match=r"clock refuses to start:\n  STTREAM_X is wrong"):
        await supervised.start()


async def test_a_service_without_a_log_writes_where_its_supervisor_does(service, capfd):
    """In a container one stream carries every line, each as its service wrote it."""
    supervised = Supervised(replace(service("import sys; print('{}'); sys.exit(2)"), log=None))
    with pytest.raises(SettingsError, match=r"^clock refuses to start; its own log line says why$"):
        await supervised.start()
    assert capfd.readouterr().out == "{}\n"


async def test_lost_data_are_not_run_over_by_another_start(service):
    """Exit code 4 waits for a decision: the words of the service, and what to type here."""
    supervised = Supervised(service("import sys; print('the server was emptied'); sys.exit(4)"))
    with pytest.raises(DataLost, match=r"(?s)clock has stopped.*\n  the server was emptied\n.*up --accept-data-loss"):
        await supervised.start()


async def test_a_service_that_ignores_sigterm_is_killed_after_its_limit(service, tmp_path):
    """A hung service cannot keep `sttream up` from stopping."""
    supervised = Supervised(service(STUBBORN, stop_s=0.2))
    supervised.start()
    await until(
        lambda: (tmp_path / "clock.log").exists() and "up" in last_words(tmp_path / "clock.log"), within_s=20, what="up"
    )

    await asyncio.wait_for(supervised.stop(), 10)

    assert supervised.pid is None


async def test_what_a_killed_service_had_started_dies_with_it(service, tmp_path):
    """A decoder left behind by a killed consumer would go on reading a recording that nobody waits for."""
    code = "import subprocess; p = subprocess.Popen(['sleep', '99']); print('child', p.pid, flush=True); p.wait()"
    supervised = Supervised(service(code))
    supervised.start()
    await until(lambda: last_words(tmp_path / "clock.log").strip().startswith("child"), within_s=20, what="the child")
    child = int(last_words(tmp_path / "clock.log").split()[-1])

    os.kill(supervised.pid, signal.SIGKILL)

    await until(lambda: not runs(child), within_s=10, what="the child's end")
    await supervised.stop()


async def test_a_service_does_not_start_for_a_parent_that_is_gone():
    """Between fork and tie the supervisor may die; nobody would ever stop that service."""
    from deploy.supervisor import _TIED

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(_TIED), "1", "/bin/true", stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert b"ended meanwhile" in error


def test_a_log_line_is_shown_as_people_read_it():
    """The files keep JSON for machines; a terminal shows what happened."""
    line = json.dumps(
        {"timestamp": "2026-03-01T06:00:00Z", "event": "entry_settled", "level": "info", "service": "x", "job_id": "a"}
    )
    assert click.unstyle(readable(line)).endswith(":00:00 entry_settled job_id=a")
    assert readable("plain words") == "plain words"
    assert readable('{"event": 1}') == '{"event": 1}'


def test_looking_is_routine_and_changing_is_not():
    """A program that waits for a job asks twice a second; that must not hide what matters."""
    seen = {"event": "request_answered", "method": "GET", "status": 200}
    assert is_routine(json.dumps(seen))
    assert is_routine(json.dumps(seen | {"status": 503}))  # not ready yet
    assert not is_routine(json.dumps(seen | {"method": "POST"}))
    assert not is_routine("plain words")


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ('{"event": "old", "error": "yesterday"}\n', "  (nothing was logged in "),
        (
            '{"error": "yesterday"}\n#{"event": "service_failed", "error": "no model x:\\nuse y"}\n',
            "  no model x:\n  use y",
        ),
        ('#{"timestamp": "2026-03-01T06:30:00Z", "event": "started", "port": 1}\n', ":30:00 started port=1"),
        ("#plain\nwords\n", "  plain\n  words"),
    ],
)
def test_last_words_are_those_of_people(tmp_path, log, told):
    """Whoever mistyped a model's name reads one sentence, not JSON; and not that of yesterday's mistake."""
    before, _, since = log.partition("#")
    path = tmp_path / "a.log"
    path.write_text(before + since)
    assert told in last_words(path, len(before))


def test_only_whole_new_lines_are_shown(tmp_path):
    """Half a line shown now would be half a line shown twice later."""
    log, shown = tmp_path / "a.log", []
    log.write_text("before\n")
    follower = Follower({"a": log}, shown.append)
    with log.open("a") as file:
        file.write("one\nhal")
        file.flush()
        follower.look()
        file.write("f\n")
    follower.look()
    log.write_text("anew\n")
    follower.look()
    assert [line.split()[-1] for line in shown] == ["one", "half", "anew"]
