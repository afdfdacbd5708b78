"""What a run prints: to the terminal for people, or as JSON."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Report:
    """One run, as it ended."""

    seed: int
    server: str
    jobs: int
    lease_ms: int
    took_s: float
    faults: Mapping[str, int]
    left_out: Mapping[str, int]
    """Faults that could not be injected: what they need was away, or is not on this machine."""
    disk: str
    """How the disk was filled up."""
    submitted: Mapping[str, int]
    """Jobs by what was known of them at the end: accepted, unknown."""
    outcomes: Mapping[str, int]
    rescues_s: Sequence[float]
    violations: Sequence[str]

    @property
    def verdict(self) -> str:
        """The last line."""
        told = f"seed={self.seed} jobs={self.jobs} faults={sum(self.faults.values())}"
        if not self.violations:
            return f"PASS {told}"
        first = " | ".join(line[:200] for line in self.violations[:3])
        return f"FAIL {told}: {len(self.violations)} violations: {first}"

    def as_json(self) -> str:
        """Return all of it for a program."""
        told: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        told |= {"rescues_s": self._rescues(), "violations": list(self.violations), "verdict": self.verdict}
        return json.dumps(told, indent=2)

    def as_text(self) -> str:
        """Return all of it for people; the verdict comes last."""
        lines = [
            f"seed      {self.seed} on {self.server}, lease {self.lease_ms} ms, {self.took_s:.0f} s",
            f"faults    {_counts(self.faults)}",
            *([f"left out  {_counts(self.left_out)}"] if self.left_out else []),
            f"disk      filled up as {self.disk}",
            f"jobs      {_counts(self.submitted)}",
            f"outcomes  {_counts(self.outcomes)}",
            f"rescues   {self._rescue_line()}",
            *(f"  wrong: {line}" for line in self.violations[:_SHOWN]),
            self.verdict,
        ]
        return "\n".join(lines)

    def _rescues(self) -> dict[str, float]:
        if not self.rescues_s:
            return {"count": 0}
        median, most = statistics.median(self.rescues_s), max(self.rescues_s)
        return {"count": len(self.rescues_s), "median_s": round(median, 2), "max_s": round(most, 2)}

    def _rescue_line(self) -> str:
        if not self.rescues_s:
            return "no killed consumer had a job in hand"
        found = self._rescues()
        return (
            f"{found['count']} jobs of killed consumers began again after {found['median_s']} s (median), "
            f"{found['max_s']} s at most"
        )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
