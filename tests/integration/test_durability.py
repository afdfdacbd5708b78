"""What an accepted job survives: the server's settings, and a replica that has the job or has not."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest
import structlog
from redis.exceptions import OutOfMemoryError

from common.connection import connect, library_is_missing, server_is_away
from common.durability import Durability
from common.errors import Unavailable, Unconfirmed
from common.queue import JobQueue, NewJob, Submitted
from common.settings import load_settings
from tests.integration.seeds import full_memory, queued, spec
from tests.integration.state import changes, whole_state
from tests.until import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from redis.asyncio import Redis

    from common.keys import Keys
    from common.settings import Settings
    from tests.integration.servers import Server, Servers

# What /readyz shows of a message.
LONGEST_MESSAGE = 300
MEMORY = "STTREAM_DURABLE_SUBMIT=memory"


@contextlib.asynccontextmanager
async def configured(redis: Redis, **options: str) -> AsyncIterator[None]:
    """An operator changes the running server, and puts it right again."""
    changed = {name.replace("_", "-"): value for name, value in options.items()}
    before = await redis.config_get(*changed)
    await redis.config_set(*(word for option in changed.items() for word in option))
    try:
        yield
    finally:
        await redis.config_set(*(word for option in before.items() for word in option))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"appendonly": "no"}, "found appendonly no, expected appendonly yes;"),
        ({"appendfsync": "everysec"}, "found appendfsync everysec, expected appendfsync always;"),
        (
            {"no_appendfsync_on_rewrite": "yes"},
            "found no-appendfsync-on-rewrite yes, expected no-appendfsync-on-rewrite no;",
        ),
    ],
)
async def test_a_server_that_does_not_sync_before_it_answers_is_found_out(
    redis: Redis, wrong: dict[str, str], says: str
) -> None:
    """A 202 from it would be a promise that a power cut breaks; whoever asked for no promise is served."""
    durability = Durability(redis, "disk")
    await durability.check()

    async with configured(redis, **wrong):
        with pytest.raises(Unavailable, match=says) as refused:
            await durability.check()
        assert MEMORY in str(refused.value)
        await Durability(redis, "memory").check()

    await durability.check()


async def test_all_that_is_wrong_fits_into_the_readiness_check(redis: Redis) -> None:
    """Both ways out stand at the end of the message: cut off, it would only complain."""
    async with configured(redis, appendonly="no", appendfsync="everysec", no_appendfsync_on_rewrite="yes"):
        with pytest.raises(Unavailable, match=f"appendonly no, appendfsync everysec, no-.*{MEMORY}") as refused:
            await Durability(redis, "replica").check()
    assert len(str(refused.value)) <= LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("level", "allowed", "way_out"),
    [
        ("disk", [], f"allow it (ACL +config|get), or promise less ({MEMORY})"),
        ("replica", ["+config|get"], "allow it (ACL +wait), or promise less (STTREAM_DURABLE_SUBMIT=disk)"),
    ],
)
async def test_a_server_that_will_not_say_is_not_trusted(
    redis: Redis, server: Server, level: str, allowed: list[str], way_out: str
) -> None:
    """Hosted servers forbid CONFIG: what cannot be checked must be given up by the operator, not by us."""
    await redis.acl_setuser("blind", enabled=True, passwords=["+secret"], commands=["+client", "+select", *allowed])
    blind = connect(load_settings({"STTREAM_REDIS_URL": f"redis://blind:secret@127.0.0.1:{server.port}/0"}))
    try:
        with pytest.raises(Unavailable) as refused:
            await Durability(blind, level).check()
        assert str(refused.value).endswith(way_out)
        assert len(str(refused.value)) <= LONGEST_MESSAGE
        await Durability(blind, "memory").check()
    finally:
        await blind.aclose()
        await redis.acl_deluser("blind")


async def test_each_finding_is_logged_once(redis: Redis) -> None:
    """The check runs every second for as long as the fault lasts."""
    durability = Durability(redis, "disk")
    with structlog.testing.capture_logs() as lines:
        for fsync in ("everysec", "no"):
            async with configured(redis, appendfsync=fsync):
                for _ in range(3):
                    with pytest.raises(Unavailable):
                        await durability.check()
        for _ in range(2):
            await durability.check()

    told = ["server_not_durable", "server_not_durable", "server_durable_again"]
    assert [line["event"] for line in lines] == told


@pytest.fixture
async def replica(servers: Servers, server: Server, redis: Redis) -> AsyncIterator[Server]:
    """A replica that keeps up."""
    async with configured(redis, repl_diskless_sync_delay="0"):
        replica = await servers.start(server.kind, replicaof=f"127.0.0.1 {server.port}")
        try:
            await until(lambda: _keeps_up(redis), within_s=60, what="the replica has the data")
            yield replica
        finally:
            # Not SIGTERM: a replica does not obey it while it writes its first append-only file.
            replica.process.kill()
            replica.process.wait(20)
            await until(lambda: _is_alone(redis), within_s=60, what="the server has seen it leave")


async def _keeps_up(redis: Redis) -> bool:
    return (await redis.info("replication")).get("slave0", {}).get("state") == "online"


async def _is_alone(redis: Redis) -> bool:
    return (await redis.info("replication"))["connected_slaves"] == 0


@pytest.fixture
async def replica_redis(replica: Server, settings: Settings) -> AsyncIterator[Redis]:
    client = connect(load_settings({"STTREAM_REDIS_URL": replica.url}))
    yield client
    await client.aclose()


@pytest.fixture
def replicated(redis: Redis, keys: Keys) -> JobQueue:
    return JobQueue(redis, keys, replicated=True)


async def accepted(queue: JobQueue, job_id: str) -> Submitted:
    """Submit until it is confirmed, as clients are told to: on a busy machine a replica may need more than a second."""

    async def confirmed() -> Submitted | None:
        with contextlib.suppress(Unconfirmed):
            return await queue.submit(job_id, spec(), max_queued=100)
        return None

    answer: Submitted = await until(confirmed, within_s=60, what=f"a yes to {job_id}")
    return answer


@contextlib.contextmanager
def paused(server: Server) -> Iterator[None]:
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


async def test_a_yes_means_that_a_replica_has_the_job(
    replicated: JobQueue, replica_redis: Redis, keys: Keys, redis: Redis
) -> None:
    """With the server's host gone, the replica goes on with the job."""
    await Durability(redis, "replica").check()
    for number in range(20):
        assert await replicated.submit(f"job-{number}", spec(), max_queued=100) is Submitted.QUEUED
        assert await replica_redis.hget(keys.job(f"job-{number}"), "state") == "queued"
    assert await replicated.submit("later", spec(), max_queued=100, delay_ms=60_000) is Submitted.SCHEDULED
    assert await replica_redis.zscore(keys.delayed, "later") is not None


async def test_no_yes_while_no_replica_confirms(
    replicated: JobQueue, replica: Server, replica_redis: Redis, other_redis: Redis, redis: Redis, keys: Keys
) -> None:
    """The repeat of a submission must not say yes to what only the server has, over whatever connection it comes."""
    other = JobQueue(other_redis, keys, replicated=True)
    assert await accepted(replicated, "before") in {Submitted.QUEUED, Submitted.KNOWN}
    # Connections whose last write is confirmed, as in a producer that has run for a while.
    assert await accepted(other, "before") is Submitted.KNOWN

    with paused(replica):
        for caller in (replicated, other, replicated):
            with pytest.raises(Unconfirmed, match=r"job a may have been accepted: .* submit it again with the id a,"):
                await caller.submit("a", spec(), max_queued=100)
        jobs = [NewJob("a", spec()), NewJob("before", spec(timeout_s=5.0))]
        unconfirmed, conflict = await replicated.submit_many(jobs, max_queued=100)
        assert isinstance(unconfirmed, Unconfirmed)
        assert (unconfirmed.job_id, conflict) == ("a", Submitted.CONFLICT)
        with pytest.raises(Unavailable, match=r"no replica that confirms.*STTREAM_DURABLE_SUBMIT=disk"):
            await Durability(redis, "replica").check()
        await Durability(redis, "disk").check()

    assert await accepted(other, "a") is Submitted.KNOWN
    assert await replica_redis.hget(keys.job("a"), "state") == "queued"
    assert await redis.xlen(keys.lane("normal")) == 2


async def test_a_refusal_needs_no_replica(replicated: JobQueue, redis: Redis) -> None:
    """It says that nothing was written, so there is nothing to confirm."""
    await queued(JobQueue(redis, replicated.keys), "a")
    before = await whole_state(redis)

    assert await replicated.submit("a", spec(priority="high"), max_queued=100) is Submitted.CONFLICT
    assert await replicated.submit("b", spec(), max_queued=1) is Submitted.FULL
    assert changes(before, await whole_state(redis)) == {}


async def test_without_any_replica_the_check_refuses_what_could_not_be_confirmed(
    replicated: JobQueue, redis: Redis
) -> None:
    """Nobody is left behind in doubt by a server that was never given a replica."""
    with pytest.raises(Unavailable, match="attach or mend one, or do without"):
        await Durability(redis, "replica").check()
    with pytest.raises(Unconfirmed):
        await replicated.submit("a", spec(), max_queued=100)
    assert await replicated.job("a") is not None


async def test_errors_are_told_by_the_servers_words(
    replicated: JobQueue, replica_redis: Redis, redis: Redis, keys: Keys
) -> None:
    """The producer answers 503 by them, and never shows the command: it holds the job."""
    async with full_memory(redis):
        with pytest.raises(OutOfMemoryError):
            await replicated.submit("a", spec(), max_queued=100)
    with pytest.raises(Exception, match="read only replica") as read_only:
        await JobQueue(replica_redis, keys, replicated=True).submit("a", spec(), max_queued=100)
    assert server_is_away(read_only.value)
    await redis.function_flush()
    with pytest.raises(Exception, match="Function not found") as missing:
        await replicated.submit("a", spec(), max_queued=100)
    assert library_is_missing(missing.value)
    assert "FCALL" not in str(missing.value)
