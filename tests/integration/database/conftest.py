"""Both databases: SQLite always, PostgreSQL where it is installed, and always in CI."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.database import Database
from tests.integration.database.postgres import INSTALLED, PostgresServer, installed


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    programs = installed()
    if programs is None:
        assert not os.environ.get("CI"), (
            f"CI must test PostgreSQL: add postgresql to the apt list of .ci/run ({INSTALLED})"
        )
        pytest.skip(f"no PostgreSQL server in {INSTALLED}; apt install postgresql")
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'sttream.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """An open and migrated database of each kind."""
    opened = Database.open(url, busy_timeout_s=1)
    await opened.migrate()
    yield opened
    await opened.aclose()
