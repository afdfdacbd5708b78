"""Where the server is found that holds a queue: in the URL itself, or by asking sentinels or the nodes of a cluster.

All keys of a queue share one hash tag, so one server holds them at a time, in a cluster too: the primary that sentinels
watch, or the one that owns the queue's slot. This module knows whom to ask for it, what, and what the answer means;
`common.connection` asks, whenever it connects.
"""

from __future__ import annotations

import binascii
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

Address = tuple[str, int]

# While it lasts, some trouble is told again in every answer: a slot on its way, too few replicas.
DOUBT_EVERY_S = 1.0
_SLOTS = 16_384
_EXPECTED = (
    "expected redis://HOST:PORT/DB, unix://PATH, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB or "
    "redis+cluster://HOST:PORT,HOST:PORT (with TLS rediss://, rediss+sentinel://, rediss+cluster://); special "
    "characters of a user or password are written as %XX"
)
_URL = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://"
    r"(?P<login>[^/?#]*@)?(?P<hosts>[^/?#@]+)(/(?P<path>[^?#]*))?(\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(\[(?P<bracketed>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(:(?P<port>[0-9]{1,5}))?")
_SENTINEL_PATH = re.compile(r"(?P<service>[^/]+)(/(?P<database>[0-9]*))?")


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """`STTREAM_REDIS_URL`, taken apart."""

    client_url: str = field(repr=False)
    """What the client library understands: of the server itself, or of the first seed in place of the primary."""
    seeds: tuple[Address, ...] = ()
    """Whom to ask for the primary; empty where the URL names the server itself."""
    service: str | None = None
    """What the sentinels call the primary; None in a cluster."""
    seed_login: dict[str, str | None] = field(default_factory=dict, repr=False)
    """User and password of the sentinels, where they are not the server's."""

    def topology(self, queue: str) -> Topology | None:
        """Return how to find the queue's primary, or None where the URL names the server itself."""
        if not self.seeds:
            return None
        return Sentinels(self.seeds, self.service) if self.service else Cluster(self.seeds, queue)


def parse_url(url: str) -> ServerUrl:
    """Take a URL apart.

    Raises:
        ValueError: says what was expected, never what was found: that may hold a password.
    """
    if url.startswith(("redis://", "rediss://", "unix://")):
        _check_port(url)
        return ServerUrl(url)
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(_EXPECTED)
    of_sentinels = found["kind"] == "sentinel"
    seeds = tuple(_address(host, 26_379 if of_sentinels else 6_379) for host in found["hosts"].split(","))
    service, database = _sentinel_path(found["path"]) if of_sentinels else (None, _cluster_path(found["path"]))
    options = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    seed_login = _take_seed_login(options) if of_sentinels else {}
    first = found["hosts"].split(",")[0]
    client_url = f"{found['scheme']}://{found['login'] or ''}{first}/{database}?{urlencode(options)}"
    return ServerUrl(client_url, seeds, service, seed_login)


def _check_port(url: str) -> None:
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError(_EXPECTED) from None  # which would repeat a part of a password with a slash in it


def _address(host: str, default_port: int) -> Address:
    found = _HOST.fullmatch(host)
    port = int(found["port"] or default_port) if found else 0
    if found is None or not 0 < port <= 65_535:
        raise ValueError(_EXPECTED)
    return unquote(found["bracketed"] or found["name"]), port


def _sentinel_path(path: str | None) -> tuple[str, str]:
    found = _SENTINEL_PATH.fullmatch(path or "")
    if found is None:
        raise ValueError(f"no service is named that the sentinels watch; {_EXPECTED}")
    return unquote(found["service"]), found["database"] or "0"


def _cluster_path(path: str | None) -> str:
    if path not in (None, "", "0"):
        raise ValueError(f"a cluster's keys are in database 0; {_EXPECTED}")
    return "0"


def _take_seed_login(options: dict[str, str]) -> dict[str, str | None]:
    """Remove the sentinels' user and password from the options; an empty one stands for none."""
    if not options.keys() & {"sentinel_username", "sentinel_password"}:
        return {}
    return {name: options.pop(f"sentinel_{name}", "") or None for name in ("username", "password")}


class Topology(ABC):
    """Whom to ask for the primary, and what was learnt. One for each client: it changes, without a lock."""

    question: tuple[str, ...]
    """The command that asks for the primary."""
    sought: str
    """The primary, in words."""

    def __init__(self, seeds: Sequence[Address], clock: Callable[[], float] = time.monotonic) -> None:
        self._seeds = tuple(seeds)
        self._primary: Address | None = None
        self._clock = clock
        self._doubted_s = -DOUBT_EVERY_S
        self.order = list(seeds)
        """Whom to ask, in this order."""
        self.view = 0
        """Counts what was believed so far. A connection that was opened under an earlier view is not to be used."""

    def learn(self, asked: Address, reply: Any) -> Address | None:
        """Return the primary that a reply names, if it names one, and remember it."""
        primary, nodes = self._read(asked, reply)
        if primary is not None:
            self._ask_in_order([asked, *self._seeds, *nodes])
            if primary != self._primary:
                self._primary = primary
                self.view += 1
        return primary

    def doubt(self, view: int, ask_first: Iterable[Address] = ()) -> None:
        """Give up a view: an answer to one of its connections says that the primary is another server, or will be.

        Args:
            view: that of the connection; nothing happens when it was given up before, or another one a moment ago.
            ask_first: who knows better.
        """
        now_s = self._clock()
        if view == self.view and now_s - self._doubted_s >= DOUBT_EVERY_S:
            self._doubted_s = now_s
            self.view += 1
            self._ask_in_order([*ask_first, *self.order])

    def distrust(self) -> None:
        """Ask somebody else next: the server that was named cannot be used."""
        self.order.append(self.order.pop(0))

    def _ask_in_order(self, addresses: Iterable[Address]) -> None:
        self.order = list(dict.fromkeys(addresses))

    @abstractmethod
    def _read(self, asked: Address, reply: Any) -> tuple[Address | None, Iterable[Address]]:
        """Return the primary that a reply names, and others who can be asked."""


class Sentinels(Topology):
    """The primary is what the sentinels say it is."""

    def __init__(self, seeds: Sequence[Address], service: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(seeds, clock)
        self.question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        self.sought = f"the primary of the service {service!r}"

    def _read(self, asked: Address, reply: Any) -> tuple[Address | None, Iterable[Address]]:
        return ((reply[0], int(reply[1])) if reply else None), ()


class Cluster(Topology):
    """The primary is the owner of the queue's slot, as any node tells it."""

    question = ("CLUSTER", "SLOTS")

    def __init__(self, seeds: Sequence[Address], queue: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(seeds, clock)
        self.slot = binascii.crc_hqx(queue.encode(), 0) % _SLOTS
        self.sought = f"the owner of slot {self.slot}, which is that of the queue {queue!r}"

    def _read(self, asked: Address, reply: Any) -> tuple[Address | None, Iterable[Address]]:
        primary: Address | None = None
        known: list[Address] = []
        for first, last, *nodes in reply:
            # A node that does not know its own name, or one that the asker reaches under the same, leaves it out.
            addresses = [(node[0] or asked[0], int(node[1])) for node in nodes]
            known.extend(addresses)
            if first <= self.slot <= last:
                primary = addresses[0]
        return primary, known
