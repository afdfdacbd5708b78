"""What the server lets this process's user do, in words that tell an operator what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from common.connection import Client, right_is_missing, user_of
from common.errors import SttreamError


class Missing(SttreamError):
    """Something is not on the server, and this process may not make it; somebody else has to."""


@contextlib.contextmanager
def making(redis: Client, what: str) -> Iterator[None]:
    """Make something that is missing.

    Raises:
        Missing: this user has no right to make it.
    """
    try:
        yield
    except Exception as exc:
        if not right_is_missing(exc):
            raise
        raise Missing(
            f"{what} is not on the server, and user {user_of(redis)!r} may not make it ({exc}): run `sttream setup` as "
            "a user who may"
        ) from exc
