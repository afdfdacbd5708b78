"""Fixtures of the acceptance tests: real processes, started as a user starts them."""

import signal

import pytest

from tests.acceptance.stacks import up

# A suite that a script runs in the background ignores Ctrl-C, and the commands that it starts would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A running `sttream up` that a module's tests share."""
    with up(tmp_path_factory.mktemp("stack") / "data") as running:
        yield running
