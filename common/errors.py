"""The errors on which a caller decides differently.

Every message says what, where, expected against found, and what happens next; never a transcript, audio or a
URL with credentials in it.
"""

from __future__ import annotations

from typing import Literal

ErrorType = Literal[
    # the source: seen at submit where possible, else the job fails at once
    "source_outside_roots",
    "source_missing",
    "source_not_a_file",
    "source_unreadable",
    "source_unsupported",
    "file_too_large",
    # the recording
    "audio_unreadable",
    "audio_too_long",
    # the request
    "option_unsupported",
    "lexicon_unknown",
    "lexicon_unreadable",
    # the service
    "timed_out",
    "decoder_crashed",
    "engine_failed",
    "attempts_spent",
    "internal_error",
    # an entry that is no job or a result that is no result
    "entry_malformed",
    "result_unstorable",
]


class SttreamError(Exception):
    """Root of the errors that this project raises."""


class JobError(SttreamError):
    """A job cannot go on; `retryable` says whether another attempt may help."""

    def __init__(self, type_: ErrorType, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.type: ErrorType = type_
        self.detail = detail
        self.retryable = retryable


class SettingsError(SttreamError):
    """The settings are wrong; the process must not start."""


class Unavailable(SttreamError):
    """Redis, the database or the disk cannot be used now; trying again later helps."""


class Unconfirmed(Unavailable):
    """A job that may have been accepted: no replica said so in time. Submitting it again with its id is safe."""

    def __init__(self, job_id: str, waited_ms: int) -> None:
        super().__init__(
            f"job {job_id} may have been accepted: no replica confirmed it within {waited_ms} ms, expected 1; "
            f"submit it again with the id {job_id}, it stays one job"
        )
        self.job_id = job_id


class DataLost(SttreamError):
    """The server holds other data than it should: it was emptied or replaced. An operator must decide."""
