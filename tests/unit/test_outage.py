"""Trouble with a server is told once, however many loops meet it, and waited out with jitter."""

import pytest
from redis.exceptions import ConnectionError, ResponseError
from structlog.testing import capture_logs

from common.errors import DataLost, Unavailable
from common.outage import LONGEST_DELAY_S, Outage, Server, passes, persist

AWAY = ConnectionError("refused")


@pytest.fixture
def logs():
    with capture_logs() as logs:
        yield logs


def told(logs):
    return [entry["event"] for entry in logs]


def test_all_uses_of_a_server_tell_of_its_outage_once(logs):
    """Five loops that meet the same trouble are one line for the operator, not five."""
    server = Server("Redis")
    uses = [server.used_for(what) for what in ("streams", "settling", "lease renewal")]
    for outage in (*uses, *uses):
        outage.failed(AWAY)

    assert logs == [
        {
            "event": "server_unreachable",
            "log_level": "warning",
            "server": "Redis",
            "met_by": "streams",
            "error": "refused",
            "next": "retrying",
        }
    ]


def test_a_server_is_back_when_its_last_use_works(logs):
    """One loop that got through while the others still fail is not the end of an outage."""
    server = Server("Redis")
    first, second = server.used_for("streams"), server.used_for("settling")
    first.failed(AWAY)
    second.failed(AWAY)
    second.failed(AWAY)

    assert first.over()
    assert told(logs) == ["server_unreachable"]
    assert second.over()
    assert told(logs) == ["server_unreachable", "server_reached_again"]
    assert logs[-1]["failures"] == 2


def test_the_next_outage_is_told_anew(logs):
    """Two bad nights are two lines."""
    outage = Server("Redis").used_for("streams")
    for _ in range(2):
        outage.failed(AWAY)
        outage.over()

    assert told(logs) == ["server_unreachable", "server_reached_again"] * 2


def test_a_success_without_a_failure_before_is_not_told(logs):
    """A healthy process is silent."""
    assert not Server("Redis").used_for("streams").over()
    assert logs == []


def test_an_error_without_a_text_is_told_by_its_type(logs):
    """An empty reason says nothing to anybody."""
    Outage("streams").failed(TimeoutError())

    assert logs[0]["error"] == "TimeoutError"


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_waits_double_up_to_a_limit(jitter):
    """A server that comes back must neither be stormed nor left alone for long."""
    outage = Outage("streams", rng=lambda: jitter)
    waits_s = [outage.failed(AWAY) for _ in range(20)]

    share = 0.5 + jitter / 2
    assert waits_s[:4] == [pytest.approx(share * wait_s) for wait_s in (0.2, 0.4, 0.8, 1.6)]
    assert waits_s[-1] == share * LONGEST_DELAY_S


def test_waits_begin_anew_after_an_outage():
    """The second outage of a day is not punished for the first."""
    outage = Outage("streams", rng=lambda: 1.0)
    first_s = outage.failed(AWAY)
    outage.failed(AWAY)
    outage.over()

    assert outage.failed(AWAY) == first_s


@pytest.mark.parametrize(
    ("error", "does"),
    [
        (AWAY, True),
        (Unavailable("the functions are missing; run: sttream setup"), True),
        (ResponseError("NOGROUP No such key"), True),
        (ResponseError("Function not found"), True),
        (ResponseError("WRONGTYPE Operation against a key"), False),
        (DataLost("the server was emptied"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_only_trouble_of_the_server_passes(error, does):
    """Waiting for a bug to go away would hide it for ever."""
    assert passes(error) is does


async def test_what_is_persisted_with_is_repeated_until_it_is_done(monkeypatch):
    """A verdict must outlive an outage."""
    outage = Outage("settling", rng=lambda: 0.0)
    monkeypatch.setattr("common.outage.FIRST_DELAY_S", 0.0)
    replies = iter([AWAY, Unavailable("not yet"), "done"])

    async def operation():
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return reply

    assert await persist(outage, operation) == "done"
    assert outage.failures == 0


async def test_what_does_not_pass_is_raised():
    """It must end the loop, and be seen."""

    async def operation():
        raise DataLost("the server was emptied")

    with pytest.raises(DataLost):
        await persist(Outage("settling"), operation)
