"""How many chunks go into one call of the model: found by trying, since no two devices and models are alike."""

from __future__ import annotations

from collections.abc import Callable

import structlog

log = structlog.get_logger()

# A larger batch costs memory and delay: of those that come so close to the fastest, the smallest is taken.
_CLOSE = 0.9
_MOST = 64


def best_batch_size(try_batch: Callable[[int], None], limit_s: float, *, clock: Callable[[], float]) -> int:
    """Return the smallest batch size that is nearly as fast as any.

    Args:
        try_batch: does the work of one batch of a size; raises RuntimeError or MemoryError when it is too much.
        limit_s: seconds after which no larger one is tried.
        clock: seconds.
    """
    began, size, rates = clock(), 1, dict[int, float]()
    try:
        while size <= _MOST and (not rates or clock() - began < limit_s):
            try_batch(size)  # a device is slow the first time that it sees a size
            at = clock()
            try_batch(size)
            rates[size] = size / max(clock() - at, 1e-9)
            size *= 2
    except (RuntimeError, MemoryError) as exc:
        log.warning("batch_too_large", size=size, error=str(exc), next="smaller ones are taken")
    best = next((size for size, rate in rates.items() if rate >= _CLOSE * max(rates.values())), 1)
    log.info(
        "batch_size_chosen", size=best, chunks_per_s=round(rates.get(best, 0.0), 1), took_s=round(clock() - began, 2)
    )
    return best
