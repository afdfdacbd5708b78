"""Fixtures of the acceptance tests: real processes, started as a user starts them."""

import pytest

from tests.acceptance.stacks import up


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A running `sttream up` that a module's tests share."""
    with up(tmp_path_factory.mktemp("stack") / "data") as running:
        yield running
