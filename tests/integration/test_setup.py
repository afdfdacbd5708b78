"""Set-up: run by every service at every start, on whatever state the server is in."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import structlog
from redis.exceptions import AuthenticationError, NoPermissionError

from common.connection import connect, refusal
from common.database import Database
from common.epoch import begin_anew
from common.errors import DataLost, Unavailable
from common.keys import TRANSCRIBERS
from common.rights import Missing
from common.scripts import library_is_there
from common.setup import set_up, set_up_once
from tests.integration.seeds import full_memory
from tests.until import until

# What each service can do without being allowed to make anything.
LOOKING = ("+get", "+fcall", "+xinfo|groups")


@pytest.fixture
async def database(tmp_path):
    async with contextlib.aclosing(
        Database.open(f"sqlite:///{tmp_path / 'sttream.db'}", busy_timeout_s=30)
    ) as database:
        await database.migrate()
        yield database


@pytest.fixture
async def emptied(redis, keys):
    """A server that has nothing at all."""
    await redis.flushall()
    await redis.function_flush()
    return redis


async def test_a_service_starts_on_a_full_server(redis, keys):
    """Only a writer that comes up again can drain it: creating what is there must not be tried."""
    async with full_memory(redis):
        await asyncio.wait_for(set_up(redis, keys), 10)


async def test_many_processes_set_up_at_once(emptied, keys, database, tmp_path):
    """A whole fleet starts together, and agrees on one epoch."""
    async with contextlib.aclosing(Database.open(f"sqlite:///{tmp_path / 'sttream.db'}", busy_timeout_s=30)) as other:
        starting = (set_up(emptied, keys, one) for one in [None, database, other, database, other] * 4)
        found = await asyncio.wait_for(asyncio.gather(*starting), 60)

    for setup in found:
        await setup.check()
    assert await database.epoch(keys.queue) == await emptied.get(keys.epoch)
    assert [group["name"] for group in await emptied.xinfo_groups(keys.lane("low"))] == [TRANSCRIBERS]


async def test_entries_added_before_the_group_are_delivered(emptied, keys, consumer, database):
    """A group that begins at the end of the stream would never see them."""
    await emptied.xadd(keys.lane("normal"), {"id": "early", "source": "/a.wav"})

    await set_up(emptied, keys, database)

    assert [entry.fields["id"] for entry in await consumer.read(10, 1)] == ["early"]


# What was lost


async def test_an_emptied_server_is_told_from_the_one_before(redis, keys):
    """Silence about a loss is the worst loss."""
    setup = await set_up(redis, keys)
    await redis.flushall()

    with pytest.raises(DataLost, match="emptied or replaced"):
        await setup.check()
    with pytest.raises(DataLost, match="--accept-data-loss"):
        await setup.restore()
    assert await redis.keys() == []


@pytest.mark.parametrize("other", [None, "of-another-server"])
async def test_a_service_does_not_begin_anew_on_lost_data(emptied, keys, database, other):
    """What a supervisor starts again after a loss must not turn it into a new life: each start refuses."""
    await set_up(emptied, keys, database)
    await emptied.flushall()
    if other:
        await emptied.set(keys.epoch, other)

    for _ in range(2):
        with pytest.raises(DataLost, match=f"is {other or 'missing'}: the server was emptied or replaced"):
            await set_up(emptied, keys, database)
    assert await emptied.keys() == ([keys.epoch] if other else [])


async def test_the_epoch_of_an_older_version_is_remembered(redis, keys, database):
    """An update must not take the data that are there for foreign ones."""
    await set_up(redis, keys, database)

    assert await database.epoch(keys.queue) == await redis.get(keys.epoch) == "of-this-test"


async def test_a_start_that_was_killed_between_server_and_database_is_no_loss(emptied, keys, database, monkeypatch):
    """The first start ever may be cut off anywhere."""

    async def killed(*_):
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(database, "remember_epoch", killed)
        with pytest.raises(asyncio.CancelledError):
            await set_up(emptied, keys, database)
    assert await database.epoch(keys.queue) is None

    await set_up(emptied, keys, database)
    assert await database.epoch(keys.queue) == await emptied.get(keys.epoch)


async def test_each_queue_has_an_epoch_of_its_own(emptied, keys, database):
    """Two queues may share a database and live on different servers."""
    await set_up(emptied, keys, database)
    other = type(keys)("other")

    await set_up(emptied, other, database)

    assert await database.epoch("other") == await emptied.get(other.epoch) != await emptied.get(keys.epoch)
    await emptied.flushall()


async def test_an_operator_may_begin_anew(emptied, keys, database):
    """After the decision services start, and those that hold to the old data do not."""
    before = await set_up(emptied, keys, database)
    lost = await emptied.get(keys.epoch)
    await emptied.flushall()

    assert await begin_anew(emptied, keys, database) == (lost, await emptied.get(keys.epoch))

    await (await set_up(emptied, keys, database)).check()
    with pytest.raises(DataLost):
        await before.check()


async def test_beginning_anew_keeps_what_the_server_has(redis, keys, database):
    """A decision that was cut off is repeated; one that was not needed changes nothing."""
    await database.remember_epoch(keys.queue, "lost")

    assert await begin_anew(redis, keys, database) == ("lost", "of-this-test")
    assert await begin_anew(redis, keys, database) == ("of-this-test", "of-this-test")


async def test_a_consumer_waits_for_the_first_epoch(emptied, keys, database):
    """It has no database to remember one in: an epoch of its making could hide a loss. It says what it waits for."""
    with structlog.testing.capture_logs() as lines:
        waiting = asyncio.create_task(set_up(emptied, keys))
        await until(lambda: lines, within_s=10, what="a line that says so")
        assert await emptied.keys() == []
        await set_up(emptied, keys, database)
        await (await asyncio.wait_for(waiting, 10)).check()

    assert [(line["event"], keys.epoch in line["missing"]) for line in lines] == [("setup_awaited", True)]


# What has gone beside the data


async def test_a_lost_library_and_lost_groups_are_made_again(redis, keys):
    """FUNCTION FLUSH, XGROUP DESTROY, DEL: no data are lost that the queue could not go on without."""
    setup = await set_up(redis, keys)
    await redis.function_flush()
    await redis.xgroup_destroy(keys.lane("high"), TRANSCRIBERS)
    await redis.delete(keys.results)

    await setup.restore()

    assert await library_is_there(redis, keys.epoch)
    assert [len(await redis.xinfo_groups(stream)) for stream in (*keys.lanes, keys.results)] == [1] * 4


# Who may not


async def test_a_user_who_may_only_look_starts_where_all_is_there(redis, keys, user):
    """Least rights: what makes libraries and groups can also break them."""
    async with user(*LOOKING) as limited:
        setup = await asyncio.wait_for(set_up(limited, keys), 10)
        await setup.check()
        await setup.restore()


@pytest.mark.parametrize(
    ("lose", "named"),
    [
        (lambda redis, keys: redis.function_flush(), "function library"),
        (lambda redis, keys: redis.xgroup_destroy(keys.lane("low"), TRANSCRIBERS), "group 'transcribers'"),
    ],
)
async def test_a_user_who_may_not_make_what_is_missing_waits_for_who_may(redis, keys, user, lose, named):
    """One line says what is missing and what to run; then it is run, and the service goes on by itself."""
    await lose(redis, keys)
    async with user(*LOOKING) as limited:
        with structlog.testing.capture_logs() as lines:
            waiting = asyncio.create_task(set_up(limited, keys))
            await until(lambda: lines, within_s=10, what="a line that says so")
            await set_up(redis, keys)
            setup = await asyncio.wait_for(waiting, 10)

        await lose(redis, keys)
        with pytest.raises(Unavailable, match="sttream setup"):
            await setup.restore()
        await set_up(redis, keys)
        await setup.restore()

    [line] = lines
    assert named in line["missing"]
    assert "sttream setup" in line["missing"]
    assert "'limited'" in line["missing"]


async def test_a_user_who_may_not_write_the_first_epoch_waits(emptied, keys, database, user):
    """A writer with least rights on a new server."""
    async with user(*LOOKING) as limited:
        with pytest.raises(Missing, match="sttream setup"):
            await set_up_once(limited, keys, database)
        await set_up(emptied, keys, database)
        await set_up_once(limited, keys, database)


async def test_a_user_who_may_not_even_look_is_a_wrong_setting(redis, keys, user):
    """Waiting would look like an outage; the process ends with what was refused."""
    async with user("+ping") as limited:
        with pytest.raises(NoPermissionError) as refused:
            await set_up(limited, keys)
    assert "'get'" in str(refusal(refused.value))


@pytest.mark.parametrize("login", ["nobody:hush@", ":hush@"])
async def test_a_wrong_password_is_a_wrong_setting(redis, keys, settings, login):
    """Told at once and without the password, not retried for ever as if the server were away."""
    await redis.config_set("requirepass", "secret")
    try:
        url = settings.redis_url.get_secret_value().replace("://", f"://{login}")
        async with connect(settings.model_copy(update={"redis_url": type(settings.redis_url)(url)})) as stranger:
            with pytest.raises(AuthenticationError) as refused:
                await asyncio.wait_for(set_up(stranger, keys), 10)
    finally:
        await redis.config_set("requirepass", "")
    told = str(refusal(refused.value))
    assert "STTREAM_REDIS_URL" in told
    assert "hush" not in told
