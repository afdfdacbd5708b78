"""How the whole suite runs: what takes long begins first, and collecting garbage looks at what the tests made."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Folders whose tests take seconds to a minute, because real processes start, wait and die. `make test` runs several
# tests at a time: begun last, one of these would be waited for by all the others.
_LONG = ("hostile", "chaos", "acceptance", "model")


@pytest.hookimpl(tryfirst=True)  # after the shuffle, which wraps all others, and before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not _takes_long(item.path))


def pytest_collection_finish() -> None:
    """Take two thousand collected tests out of the garbage collector's sight.

    The model's library collects garbage whenever it decodes a file: 0.5 s each time among all those objects.
    """
    gc.collect()
    gc.freeze()


def _takes_long(path: Path) -> bool:
    return path.parent.name in _LONG
