"""The metrics of each service: one class a service, on a registry of its own.

`docs/metrics.md` is the table of them; a test compares the two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from common import __version__
from common.records import PRIORITIES

if TYPE_CHECKING:
    from common.overview import QueueStats

PREFIX = "sttream"
DELIVERY_KINDS = ("new", "rescued")
# What became of an entry: its verdict, carried out.
OUTCOMES = ("completed", "retried", "failed", "cancelled", "released")

# From a short clip on an idle GPU to a day's recording behind a night's backlog.
WAIT_BUCKETS_S = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1_800, 3_600, 10_800, 21_600, 43_200, 86_400)
FILL_BUCKETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
# Why a chunk is read once more.
READ_AGAIN = ("short_window", "temperature", "rest", "sparse")
REALTIME_BUCKETS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServiceMetrics:
    """What every service tells: its version, memory, processor time and open files."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Info(f"{PREFIX}_build", "The version that runs.", registry=self.registry)
        build.info({"version": __version__})

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...] = WAIT_BUCKETS_S) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", meaning, buckets=buckets, registry=self.registry)


class ProducerMetrics(ServiceMetrics):
    """What comes in, and the queue as a whole: one service reports it, not every replica of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs_submitted = self._counter("jobs_submitted_total", "Jobs accepted.", "priority")
        self.jobs_refused = self._counter(
            "jobs_refused_total", "Submissions refused, by the code of the problem.", "reason"
        )
        self.queue_depth = self._gauge("queue_depth", "Jobs waiting to be started.", "priority")
        self.queue_running = self._gauge("queue_running", "Jobs that a consumer holds.")
        self.queue_scheduled = self._gauge("queue_scheduled", "Jobs that are due later.")
        self.queue_oldest_seconds = self._gauge(
            "queue_oldest_seconds", "How long the job has waited that has waited longest; 0 when none waits."
        )
        self.consumers = self._gauge("consumers", "Consumers that speak to the server within the lease.")
        self.writer_lag_entries = self._gauge("writer_lag_entries", "Results that the writer has not stored yet.")
        for priority in PRIORITIES:
            self.jobs_submitted.labels(priority)

    def show_queue(self, stats: QueueStats) -> None:
        """Set the gauges of the queue."""
        for priority, waiting in stats.queued.items():
            self.queue_depth.labels(priority).set(waiting)
        self.queue_running.set(stats.running)
        self.queue_scheduled.set(stats.scheduled)
        self.queue_oldest_seconds.set(stats.oldest_queued_s or 0)
        self.consumers.set(sum(consumer.state != "lost" for consumer in stats.consumers))
        self.writer_lag_entries.set(stats.unstored)

    def hide_queue(self) -> None:
        """Say that the queue is unknown (NaN): an old figure would look like a quiet queue."""
        for priority in PRIORITIES:
            self.queue_depth.labels(priority).set(math.nan)
        for gauge in (self.queue_running, self.queue_scheduled, self.queue_oldest_seconds):
            gauge.set(math.nan)
        for gauge in (self.consumers, self.writer_lag_entries):
            gauge.set(math.nan)


class StageMetrics(ServiceMetrics):
    """What the stage loop counts, whatever it works on."""

    def __init__(self) -> None:
        super().__init__()
        self.deliveries = self._counter("deliveries_total", "Entries taken from a stream.", "kind")
        self.leases_lost = self._counter(
            "leases_lost_total",
            "Leases that ended before their work: another consumer took the entry over, or its time was up.",
        )
        self.jobs_settled = self._counter("jobs_settled_total", "Entries settled.", "outcome")
        self.dead_letters = self._counter("dead_letters_total", "Entries moved to the dead letters.", "reason")
        for kind in DELIVERY_KINDS:
            self.deliveries.labels(kind)
        for outcome in OUTCOMES:
            self.jobs_settled.labels(outcome)


class ConsumerMetrics(StageMetrics):
    """A consumer: how long jobs wait and take, and how much is transcribed how fast."""

    def __init__(self) -> None:
        super().__init__()
        self.job_queue_wait_seconds = self._histogram(
            "job_queue_wait_seconds", "From the moment a job is queued until the attempt starts that completes it."
        )
        self.job_processing_seconds = self._histogram(
            "job_processing_seconds", "From the start of an attempt until its transcript is made."
        )
        self.audio_seconds = self._counter("audio_seconds_total", "Seconds of audio transcribed.")
        self.realtime_factor = self._histogram(
            "realtime_factor", "Seconds of audio transcribed per second of work, by job.", REALTIME_BUCKETS
        )
        self.batch_fill_ratio = self._histogram(
            "batch_fill_ratio", "Chunks in a model call, of the most that one may have.", FILL_BUCKETS
        )
        self.chunks_read_again = self._counter(
            "chunks_read_again_total", "Chunks whose first reading was not good enough.", "reason"
        )
        self.engine_idle_seconds = self._counter(
            "engine_idle_seconds_total", "Seconds in which a thread of the engine waited for chunks."
        )
        for reason in READ_AGAIN:
            self.chunks_read_again.labels(reason)


class WriterMetrics(StageMetrics):
    """A writer: how long a job took from submission to stored transcript."""

    def __init__(self) -> None:
        super().__init__()
        self.job_end_to_end_seconds = self._histogram(
            "job_end_to_end_seconds", "From the submission of a job until its outcome is stored."
        )
