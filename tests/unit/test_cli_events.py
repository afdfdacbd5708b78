"""`sttream events` over the restarts of a producer."""

import pytest

from cli import events
from cli.http import Unreachable


class Restarting:
    """A producer that plays one list of events a connection; an exception instead of a list is raised."""

    def __init__(self, *connections, state="running"):
        self.connections, self.state, self.asked_after = list(connections), state, []

    async def events(self, _path, after=""):
        self.asked_after.append(after)
        found = self.connections.pop(0) if self.connections else Unreachable("gone")
        if isinstance(found, Exception):
            raise found
        for event_id, state in found:
            yield event_id, {"id": "a", "state": state}

    async def job(self, job_id):
        return {"id": job_id, "state": self.state, "finished_at": "2026-03-01T06:00:00Z", "progress": 1.0}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(events, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(events, "LONGEST_WAIT_S", 0.01)


async def states(producer, job_id, **options):
    """Return the states that a listener saw."""
    return [event["state"] async for event in events.follow(producer, job_id, **options)]


async def test_a_stream_that_broke_off_goes_on_behind_its_last_event():
    """A deploy of the producer costs a listener no event and shows none twice."""
    producer = Restarting([("1-0", "queued")], Unreachable("restarts"), [("2-0", "running"), ("3-0", "completed")])
    assert await states(producer, "a") == ["queued", "running", "completed"]
    assert producer.asked_after == ["", "1-0", "1-0"]


async def test_a_job_that_ended_unseen_has_ended():
    """Events are dropped after a while; the job itself says how it ended."""
    producer = Restarting([("1-0", "running")], state="failed")
    assert await states(producer, "a") == ["running", "failed"]


@pytest.mark.parametrize("job_id", ["a", None])
async def test_a_producer_that_stays_away_is_an_error(job_id):
    """A script must not take a dead service for the end of a job."""
    with pytest.raises(Unreachable):
        await states(Restarting([("1-0", "running")]), job_id, outage_s=0.05)


async def test_a_producer_that_never_answered_is_told_at_once():
    """A wrong address is no restart."""
    producer = Restarting()
    with pytest.raises(Unreachable):
        await states(producer, "a")
    assert len(producer.asked_after) == 1
