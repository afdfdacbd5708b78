"""The command line without any service: help, wrong use, exit codes."""

import json
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from cli import parameters
from cli.main import sttream
from common.formats import FORMATS
from common.records import PRIORITIES, TERMINAL

VERBS = (
    *("up", "demo", "producer", "consumer", "writer", "setup", "config"),
    *("submit", "batch", "status", "cancel", "transcript", "search", "events", "queue", "dead", "prune"),
)


@pytest.fixture
def run(monkeypatch):
    """Run a command line in an environment without settings."""
    for variable in ("REDIS_URL", "STTREAM_REDIS_URL", "STTREAM_URL", "STTREAM_LEASE_MS"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments, **environ):
        return CliRunner().invoke(sttream, arguments, env=environ)

    return run


@pytest.fixture
def nobody():
    """The URL of a port on which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_help_names_every_verb(run):
    """Somebody who types `sttream -h` sees the whole contract."""
    helped = run("-h").stdout
    assert [verb for verb in VERBS if f"\n  {verb} " not in helped] == []


def test_help_cuts_no_sentence(run):
    """A list of verbs whose lines end in dots explains half of them."""
    helped = run("-h").stdout + run("dead", "-h").stdout
    assert "..." not in helped.replace("[ARGS]...", "")
    assert "\\b" not in helped
    assert max(len(verb.get_short_help_str(200)) for verb in sttream.commands.values()) <= 60


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(run, verb):
    """A verb whose options cannot be listed cannot be used."""
    helped = run(verb, "-h")
    assert helped.exit_code == 0
    assert helped.stdout.startswith(f"Usage: sttream {verb}")


def test_help_imports_no_library_that_takes_long():
    """`sttream --help` and shell completion answer at once."""
    code = (
        "import sys, cli.main; print(sorted({'aiohttp', 'pydantic', 'redis', 'rich', 'structlog'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_choices_are_those_of_the_records():
    """The command line repeats three short lists so that help is fast; they must not drift."""
    assert parameters.PRIORITIES == PRIORITIES
    assert parameters.FORMATS == FORMATS
    assert set(parameters.ENDED) == TERMINAL


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["submit"], "Missing argument 'SOURCE...'"),
        (["submit", "a.wav", "b.wav", "--id", "x"], "--id names one job"),
        (["submit", "a.wav", "--priority", "urgent"], "'urgent' is not one of"),
        (["submit", "a.wav", "--option", "beam_size"], "expected NAME=VALUE"),
        (["submit", "a.wav", "--option", "beam=3"], "unknown option beam; known: language,"),
        (["submit", "a.wav", "--option", "beam_size=many"], "beam_size: Input should be a valid integer"),
        (["submit", "a.wav", "--language", "english"], "language: unknown language 'english'"),
        (["submit", "a.wav", "--format", "srt"], "--format needs --wait"),
        (["transcript", "x", "--json", "--format", "srt"], "--json and --format srt exclude each other"),
        (["search"], "Missing argument 'WORDS...'"),
        (["search", "x", "--limit", "101"], "101 is not in the range"),
        (["submit", "/nowhere/a.wav", "--upload"], "there is no such file to upload"),
        (["batch", "/nowhere"], "'/nowhere' does not exist"),
        (["dead", "drop"], "name a dead letter, or all of them"),
        (["dead", "revive", "x", "--all"], "name a dead letter, or all of them"),
        (["up", "--port", "0"], "0 is not in the range"),
        (["demo", "/nowhere"], "no recordings in /nowhere (files that end in"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, arguments, says):
    """A typing mistake costs one line, and scripts see exit code 2."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in " ".join(result.stderr.split())


@pytest.mark.parametrize("verb", [["config"], ["producer"], ["consumer"], ["writer"], ["setup"], ["status", "x"]])
def test_a_wrong_setting_is_one_line_and_exit_code_2(run, verb):
    """An operator reads which variable to mend, not a traceback."""
    result = run(*verb, STTREAM_LEASE_MS="soon")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: wrong settings: STTREAM_LEASE_MS:")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "verb",
    [
        *(["status", "x"], ["cancel", "x"], ["transcript", "x"], ["search", "x"], ["events"], ["queue"]),
        *(["dead", "ls"], ["dead", "show", "x"], ["submit", "/a.wav"]),
    ],
)
def test_a_producer_that_is_not_there_is_exit_code_3(run, verb, nobody):
    """The message says what was tried, where, and what to do next."""
    result = run(*verb, "--url", nobody)
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"no producer answers at {nobody}: connection refused. " in result.stderr
    assert "Is `sttream up` running?" in result.stderr


def test_set_up_without_a_server_is_exit_code_3(run, nobody):
    """`sttream setup` is run by a person, who is told at once instead of waiting."""
    result = run("setup", STTREAM_REDIS_URL=nobody.replace("http://", "redis://:hush@"))
    assert result.exit_code == 3
    where = nobody.replace("http://", "redis://***@")
    assert f"the server at {where} cannot be used: connection refused. " in result.stderr
    assert "hush" not in result.stderr


def test_config_shows_each_setting_with_its_origin_and_no_password(run):
    """What a service runs with can be pasted into a ticket."""
    result = run(
        "config", "--json", STTREAM_DATABASE_URL="postgresql+asyncpg://sttream:hush@db/sttream", STTREAM_SLOTS="3"
    )
    shown = json.loads(result.stdout)
    assert shown["database_url"]["value"] == "postgresql+asyncpg://sttream:***@db/sttream"
    assert shown["slots"] == {"value": 3, "from": "STTREAM_SLOTS"}
    assert shown["queue"] == {"value": "sttream", "from": "default"}


def test_config_is_a_table_that_loses_nothing(run):
    """A path that is cut at the edge of a table is no path."""
    folder = "/very" * 40
    result = run("config", STTREAM_RESULTS_DIR=folder)
    assert folder in "".join(result.stdout.split()).replace("STTREAM_RESULTS_DIR", "")
    assert "STTREAM_RESULTS_DIR" in result.stdout


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hush@h:6379/0", "redis://:***@h:6379/0"),
        ("postgresql+asyncpg://u:h@u/s#h@db/x", "postgresql+asyncpg://u:***@db/x"),
        ("redis://h/0?password=hush&x=1", "redis://h/0?password=***&x=1"),
        ("redis+sentinel://:a@h,i:1/s?sentinel_password=b", "redis+sentinel://:***@h,i:1/s?sentinel_password=***"),
        ("sqlite+aiosqlite:////data/a.db", "sqlite+aiosqlite:////data/a.db"),
        ("redis://user@h/0", "redis://user@h/0"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    """Hiding more than the password would hide which server it is."""
    from cli.services import visible_url

    assert visible_url(url) == shown


def test_option_texts_become_the_types_of_the_api():
    """The API refuses "3" where it wants 3; the shell has only text."""
    found = parameters.decoding_options(["beam_size=3", "word_timestamps=true", "initial_prompt=1984"], "en")
    assert found == {"beam_size": 3, "word_timestamps": True, "initial_prompt": "1984", "language": "en"}


@pytest.mark.parametrize("age", ["90", "d", "-1d", "1.5h", "1 d", "9999999d", "1y"])
def test_an_age_needs_a_number_and_a_unit(run, age):
    """Ninety of what? Guessing would delete too much."""
    result = run("prune", "--older-than", age)
    assert result.exit_code == 2
    assert "such as 90d" in result.stderr
