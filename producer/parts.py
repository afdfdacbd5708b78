"""What the handlers work with, made once by `producer.app`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from common.dead import DeadLetters
from common.overview import Overview
from producer.bodies import Pace

if TYPE_CHECKING:
    from common.database import Database
    from common.health import Readiness
    from common.lexicons import Lexicons
    from common.metrics import ProducerMetrics
    from common.queue import JobQueue
    from common.settings import Settings
    from producer.tail import EventTail
    from producer.uploads import UploadFolder


@dataclass(frozen=True, slots=True)
class Parts:
    """Ready objects; whoever made them closes them."""

    settings: Settings
    queue: JobQueue
    database: Database
    readiness: Readiness
    metrics: ProducerMetrics
    uploads: UploadFolder
    tail: EventTail
    lexicons: Lexicons
    pace: Pace = field(default_factory=Pace)
    keep_alive_s: float = 15.0
    """Proxies close event streams on which nothing moves, mostly after 30 s or a minute."""

    @property
    def overview(self) -> Overview:
        """The queue at a glance."""
        return Overview(self.queue)

    @property
    def dead(self) -> DeadLetters:
        """The dead letters."""
        return DeadLetters(self.queue)


PARTS = web.AppKey("parts", Parts)
