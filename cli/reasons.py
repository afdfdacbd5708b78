"""Why something does not answer, in plain words."""

from __future__ import annotations

import os


def reason_of(error: BaseException) -> str:
    """Return the system's reason behind a library's error, such as "connection refused"; else the error's own words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            # Resolvers have negative numbers and texts of their own.
            words = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
            if words:
                return words[:1].lower() + words[1:]
        if isinstance(cause, TimeoutError):
            return "no answer in time"
        cause = cause.__cause__ or cause.__context__
    return str(error).rstrip(".") or type(error).__name__
