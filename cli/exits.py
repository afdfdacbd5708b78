"""Exit codes: 0 done, 1 the job failed, 2 wrong use, 3 a service cannot be reached, 4 data were lost."""

from __future__ import annotations

from http import HTTPStatus

from common.errors import DataLost, SettingsError, SttreamError

FAILED = 1
WRONG_USE = 2
UNREACHABLE = 3
DATA_LOST = 4
INTERRUPTED = 130


def exit_code_of(error: SttreamError) -> int:
    """Return the exit code of a verb that an error has ended."""
    from cli.http import Refused
    from deploy.errors import StackRefused

    if isinstance(error, Refused):
        return _of_status(error.status)
    if isinstance(error, DataLost):
        return DATA_LOST
    return WRONG_USE if isinstance(error, SettingsError | StackRefused) else UNREACHABLE


def _of_status(status: int) -> int:
    """Return 1 for what the job's own state forbids, 3 for what may be possible later, else 2."""
    if status == HTTPStatus.CONFLICT:
        return FAILED
    later = status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return UNREACHABLE if later else WRONG_USE
