"""Why an embedded stack does not run."""

from __future__ import annotations

from common.errors import SttreamError


class StackRefused(SttreamError):
    """The stack cannot start as asked: a port, a folder or a setting must change first."""


class ServiceFailed(SttreamError):
    """A service does not come up, or ended in a way that starting it again cannot mend."""
