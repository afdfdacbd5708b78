"""What the server lets this process's user do, in words that tell an operator what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from common.connection import Client, login_is_refused, right_is_missing, user_of
from common.errors import SettingsError, SttreamError


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


@contextlib.contextmanager
def needed_by_all(redis: Client) -> Iterator[None]:
    """Do what no service can do without.

    Raises:
        SettingsError: the server does not know this user, or its rights do not suffice.
    """
    try:
        yield
    except Exception as exc:
        if not (login_is_refused(exc) or right_is_missing(exc)):
            raise
        raise SettingsError(
            f"STTREAM_REDIS_URL: the server refuses user {user_of(redis)!r} ({exc}): its name, its password or its "
            "rights must change first"
        ) from exc
