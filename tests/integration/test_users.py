"""deploy/redis/users.acl: what each user may not do. What it may, the other tests show, which run as these users."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from common.settings import load_settings
from tests.integration.seeds import PUBLISH, queued, running, settle
from tests.integration.state import changes, whole_state

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from common.queue import JobQueue
    from common.streams import JobStreams
    from tests.integration.conftest import ClientOf
    from tests.integration.servers import Server

USERS = ("producer", "consumer", "writer", "metrics", "operator")

NOBODY_MAY = (
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "CONFIG SET appendonly no",
    "SHUTDOWN NOSAVE",
    "ACL LIST",
    "ACL SETUSER default on",
    "CLIENT KILL TYPE normal",
    "REPLICAOF NO ONE",
    "FUNCTION FLUSH",
    "FUNCTION DELETE sttream",
    "SCRIPT FLUSH",
    "EVAL return(1) 0",
    "MONITOR",
    "DEL {sttream}:jobs:normal",
    "UNLINK {sttream}:job:a",
    "RENAME {sttream}:results other",
    "XTRIM {sttream}:jobs:normal MAXLEN 0",
    "XTRIM {sttream}:results MAXLEN 0",
    "XGROUP DESTROY {sttream}:jobs:normal transcribers",
    "XGROUP SETID {sttream}:jobs:normal transcribers $",
    "XSETID {sttream}:jobs:normal 9-9",
    "GET other",
    "SET other x",
    "XADD other * a b",
    "XREADGROUP GROUP g c STREAMS other >",
)

MAY_NOT = {
    "producer": (
        "XREADGROUP GROUP transcribers me STREAMS {sttream}:jobs:normal >",
        "XREADGROUP GROUP writers me STREAMS {sttream}:results >",
        "XAUTOCLAIM {sttream}:jobs:normal transcribers me 0 0-0",
        "XCLAIM {sttream}:jobs:normal transcribers me 0 0-1",
        "XDEL {sttream}:results 0-1",
        "XACK {sttream}:results writers 0-1",
        "XGROUP DELCONSUMER {sttream}:jobs:normal transcribers me",
        "XGROUP CREATE {sttream}:jobs:normal other 0",
        "SET {sttream}:epoch other",
        "FUNCTION LOAD x",
        "HGETALL {sttream}:parts:a",
    ),
    "consumer": (
        "XRANGE {sttream}:results - +",
        "XREAD STREAMS {sttream}:results 0",
        "XREADGROUP GROUP writers me STREAMS {sttream}:results >",
        "XDEL {sttream}:results 0-1",
        "XRANGE {sttream}:dead - +",
        "XDEL {sttream}:dead 0-1",
        "XRANGE {sttream}:events - +",
        "PERSIST {sttream}:job:a",
        "EXPIRE {sttream}:job:a 1",
        "SET {sttream}:epoch other",
        "XGROUP CREATE {sttream}:jobs:normal other 0",
        "FUNCTION LOAD x",
    ),
    "writer": (
        "XRANGE {sttream}:jobs:normal - +",
        "XLEN {sttream}:jobs:normal",
        "XADD {sttream}:jobs:normal * id a source b",
        "XREADGROUP GROUP transcribers me STREAMS {sttream}:jobs:normal >",
        "XADD {sttream}:results * id a outcome completed",
        "XRANGE {sttream}:dead - +",
        "HGETALL {sttream}:parts:a",
        "ZADD {sttream}:delayed 1 a",
        "SET {sttream}:epoch other",
    ),
    "metrics": (
        "XRANGE {sttream}:jobs:normal - +",
        "XREAD STREAMS {sttream}:results 0",
        "XINFO STREAM {sttream}:results",
        "XRANGE {sttream}:dead - +",
        "HGETALL {sttream}:job:a",
        "ZRANGE {sttream}:delayed 0 -1",
        "XADD {sttream}:jobs:normal * id a source b",
        "FCALL any 0",
    ),
    "operator": (
        "XADD {sttream}:jobs:normal * id a source b",
        "XACK {sttream}:jobs:normal transcribers 0-1",
        "XCLAIM {sttream}:jobs:normal transcribers me 0 0-1",
        "XREADGROUP GROUP transcribers me STREAMS {sttream}:jobs:normal >",
        "HSET {sttream}:job:a state completed",
        "ZADD {sttream}:delayed 1 a",
        "XDEL {sttream}:dead 0-1",
    ),
}


@pytest.mark.parametrize("user", USERS)
async def test_a_user_may_not_do_what_its_service_does_not(user: str, client_of: ClientOf, redis: Redis) -> None:
    """A service that is taken over, or wrong, can harm no more than its own work."""
    client = await client_of(user)
    before = await whole_state(redis)

    refused = [command for command in (*NOBODY_MAY, *MAY_NOT[user]) if await _is_refused(client, command)]

    assert refused == [*NOBODY_MAY, *MAY_NOT[user]]
    assert changes(before, await whole_state(redis)) == {}


async def _is_refused(client: Redis, command: str) -> bool:
    """Whether the server refuses a command for who sends it; any other answer means that it would have run."""
    try:
        await client.execute_command(*command.split(" "))
    except NoPermissionError:
        return True
    except ResponseError:
        return False
    return False


@pytest.mark.parametrize(
    "command",
    [
        "XREADGROUP NOACK GROUP transcribers STREAMS STREAMS {sttream}:results >",
        "XREADGROUP GROUP STREAMS STREAMS STREAMS {sttream}:results >",
        "XREAD COUNT 1 STREAMS {sttream}:jobs:normal {sttream}:results 0 0",
    ],
)
async def test_no_word_of_a_command_opens_a_foreign_stream(command: str, client_of: ClientOf, redis: Redis) -> None:
    """Servers take the word STREAMS for a key here: a pattern that matched it would open every stream."""
    client = await client_of("consumer")

    with pytest.raises(NoPermissionError):
        await client.execute_command(*command.split(" "))


async def test_a_function_can_do_no_more_than_its_caller(
    client_of: ClientOf, queue: JobQueue, consumer: JobStreams, redis: Redis
) -> None:
    """The library is open to all services; what it may touch is not."""
    task = await running(queue, consumer)
    await queued(queue, "b")
    as_producer = type(consumer)(await client_of("producer"), queue.keys, load_settings({}), "host-1-aaa")
    as_writer = type(queue)(await client_of("writer"), queue.keys)
    before = await whole_state(redis)

    with pytest.raises(Exception, match=r"user executing the script|permission"):
        await as_producer.rescue(1, 0)
    with pytest.raises(Exception, match=r"user executing the script|permission"):
        await as_writer.cancel("b")
    assert changes(before, await whole_state(redis)) == {}
    assert await settle(consumer, task, PUBLISH)


async def test_nobody_gets_in_without_a_password(server: Server, redis: Redis) -> None:
    """The file as it is shipped lets nobody log in; the user of clients that name none is off."""
    from tests.integration.servers import USERS as SHIPPED

    lines = SHIPPED.read_text().splitlines()

    assert lines[0] == "user default off"
    assert [line.split()[1] for line in lines[1:]] == list(USERS)
    assert not any(" >" in line or "nopass" in line or " #" in line for line in lines)
