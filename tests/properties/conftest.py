"""What the state machine runs on: both servers, driven by one event loop that runs only while it is asked to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.integration.servers import KINDS, Server, Servers

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("long", max_examples=150, stateful_step_count=60, deadline=None, print_blob=True)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers(tmp_path_factory.mktemp) as servers:
        yield servers


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    # A factory of its own, so that the loop of the asynchronous tests stays the current one.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        yield runner


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, servers: Servers, runner: asyncio.Runner) -> Server:
    return runner.run(servers.get(request.param))
