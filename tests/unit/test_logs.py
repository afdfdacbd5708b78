"""Log lines are data: one JSON object a line, nothing in it that could hurt or tell a secret."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from common.logs import configure_logs, safe_text
from common.settings import Settings


@pytest.fixture
def logs(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Give a test a function that configures the logs and returns a reader of what was written."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def read() -> list[dict[str, Any]]:
        out, err = capsys.readouterr()
        assert out == ""
        return [json.loads(line) for line in err.splitlines()]

    def configure() -> Any:
        # Within the test: pytest changes standard error between set-up and test.
        configure_logs(Settings(), "producer")
        return read

    yield configure
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level


def test_a_line_says_when_who_and_what(logs: Any) -> None:
    """One object a line on standard error; standard output belongs to data."""
    lines = logs()
    with structlog.contextvars.bound_contextvars(job_id="a"):
        structlog.get_logger().info("entry_settled", attempt=1, ids=("a", "b"))
    [line] = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "service": "producer",
        "job_id": "a",
        "event": "entry_settled",
        "level": "info",
        "attempt": 1,
        "ids": ["a", "b"],
    }


def test_what_is_below_the_level_is_not_written(logs: Any) -> None:
    """`info` is the default: requests of health checks stay out."""
    lines = logs()
    structlog.get_logger().debug("request_answered")
    logging.getLogger("aiohttp.access").info("x")
    assert lines() == []


def test_libraries_write_the_same_lines(logs: Any) -> None:
    """Warnings of aiohttp, alembic, sqlalchemy and redis come in the same form."""
    lines = logs()
    logging.getLogger("sqlalchemy.engine").warning("slow %s", "query\x1b[2J")
    [line] = lines()
    assert (line["event"], line["level"], line["logger"]) == (
        "slow query\\x1b[2J",
        "warning",
        "sqlalchemy.engine",
    )


def test_a_traceback_stays_readable(logs: Any) -> None:
    """Its line breaks are kept, its values are not: a local variable may be a secret."""
    lines = logs()
    try:
        password = "hunter2"
        raise ValueError(f"{len(password)} characters\x1b[31m at redis://u:p@h/0")
    except ValueError:
        structlog.get_logger().exception("failed")
    [line] = lines()
    assert "\n  File " in line["exception"]
    assert "hunter2" not in line["exception"].replace('password = "hunter2"', "")
    assert "7 characters\\x1b[31m at redis://***@h/0" in line["exception"]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("redis://me:pass@word@host:1/0", "redis://***@host:1/0"),
        ("https://h/a.mp3?X-Amz-Signature=abc&x=1", "https://h/a.mp3?X-Amz-Signature=***&x=1"),
        ("https://h/a?token=abc and more", "https://h/a?token=*** and more"),
        ("a\nb\r\tc\x00", "a\\nb\\r\\tc\\x00"),
        ("user\u202egnp.exe", "user\\u202egnp.exe"),
        ("half \ud800", "half \\ud800"),
        ("Grüße, 日本語 👋", "Grüße, 日本語 👋"),
        ("someone@example.org", "someone@example.org"),
        ("x" * 3000, "x" * 2000 + "… (3000 characters)"),
    ],
)
def test_text_of_others_is_made_safe(text: str, safe: str) -> None:
    """No credentials, no control of a terminal, no line that pretends to be another, no flood."""
    assert safe_text(text) == safe


@pytest.mark.timeout(5)
@pytest.mark.parametrize("text", ["://" * 10**6, "?key" * 10**6, "://a" + "b" * 10**6, "?" + "token" * 10**6])
def test_making_text_safe_takes_no_time(text: str) -> None:
    """What is logged may come from an attacker; a pattern must not run for minutes on it."""
    assert len(safe_text(text)) < 2100


def test_anything_can_be_logged(logs: Any) -> None:
    """A log call must never be what fails."""
    lines = logs()
    structlog.get_logger().info("odd", big=2**200, raw=b"\xff", deep=[[[[[[[1]]]]]]], keys={1: object, None: 2})
    [line] = lines()
    assert line["big"] == str(2**200)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_log_that_cannot_be_written_costs_nothing_but_its_lines(logs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Services whose logs lie on the disk that is full must not end because of it."""
    with Path("/dev/full").open("w", buffering=1) as stream, Path(os.devnull).open("w") as room:
        monkeypatch.setattr("sys.stderr", stream)
        logs()
        for _ in range(200):
            structlog.get_logger().info("entry_settled", detail="x" * 200)
        os.dup2(room.fileno(), stream.fileno())
