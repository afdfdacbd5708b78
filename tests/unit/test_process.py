"""How a service's end is explained: exit code and one log line."""

import pytest
import structlog

from common.errors import DataLost, SettingsError, Unavailable
from common.process import _explain

LOST = DataLost("the server was emptied")
WRONG = SettingsError("the server refuses user 'writer'")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (LOST, 4, "the server was emptied"),
        (ExceptionGroup("", [LOST, DataLost("the server was emptied")]), 4, "the server was emptied"),
        (ExceptionGroup("", [KeyError("group"), ExceptionGroup("", [LOST]), WRONG]), 4, "the server was emptied"),
        (ExceptionGroup("", [Unavailable("no answer"), WRONG]), 2, "the server refuses user 'writer'"),
        (Unavailable("no answer"), 3, "no answer"),
    ],
)
def test_the_cause_is_told_in_one_line(error, code, told):
    """Every loop of a process fails on an emptied server, each in its own way: an operator needs the reason."""
    with structlog.testing.capture_logs() as lines:
        assert _explain(error) == code
    assert lines == [{"event": "service_failed", "log_level": "error", "error": told, "exit_code": code}]


def test_a_bug_keeps_its_traceback():
    """What nobody expected cannot be told in one line."""
    with structlog.testing.capture_logs() as lines:
        assert _explain(ExceptionGroup("", [KeyError("a"), Unavailable("no answer")])) == 3
    assert "exc_info" in lines[0]
