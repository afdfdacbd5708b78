"""Hundreds of hostile files through real processes: each has an end that makes sense, and nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from cli.http import Producer, Refused, open_producer
from cli.wait import wait_for_end
from tests.acceptance.stacks import Up, up
from tests.hostile.corpus import COMPLETED, FAILED, NEIGHBOUR_WORDS, REFUSED, HostileFile, make_corpus
from tests.recordings import EXAMPLES
from tests.until import until

# Another corpus of the same kinds: HOSTILE_SEED=7 pytest tests/hostile
SEED = int(os.environ.get("HOSTILE_SEED", "20261122"))
SETTINGS = {
    "STTREAM_MAX_AUDIO_S": "60",  # the bombs are of a day
    "STTREAM_PREPARE_PROCESSES": "2",
    "STTREAM_RETRY_DELAY_S": "0.2",
}
# What is heard matters less here than that something is.
QUICK = {"beam_size": 1, "temperature": 0.0}
# With the small model and a job at work it holds 0.4 GB.
MOST_MEMORY_BYTES = 1 << 30
SUBMITTED_AT_A_TIME = 8
# What a final failure may be called; not among it: decoder_crashed, timed_out, internal_error.
CLEAR = frozenset({"audio_unreadable", "audio_too_long"})


@dataclass(frozen=True)
class End:
    """How one file ended: a job, or the producer's refusal."""

    file: HostileFile
    job: Mapping[str, Any] | None = None
    refusal: Refused | None = None
    text: str = ""

    @property
    def state(self) -> str:
        return REFUSED if self.job is None else str(self.job["state"])

    @property
    def why(self) -> Mapping[str, str]:
        """The type and the words of what went wrong."""
        if self.refusal is not None:
            return {"type": self.refusal.code, "detail": str(self.refusal)}
        return (self.job or {}).get("error") or {}

    def __str__(self) -> str:
        return f"{self.file.kind}: {self.file.path.name!a} {self.state} {dict(self.why)!a} {self.text[:60]!r}"


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_hostile_file_ends_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    """Whoever may submit can hand in anything: it costs its own job, and never the consumer, the disk or a secret."""
    with socket.create_server(("127.0.0.1", 0)) as lure:
        corpus = make_corpus(tmp_path, SEED, port=lure.getsockname()[1])
        assert len(corpus) >= 300
        with up(tmp_path / "data", "--audio", str(tmp_path / "audio"), **SETTINGS) as stack:
            consumer = stack.pid_of("consumer")
            async with open_producer(stack.url) as producer:
                ends = await _run_all(producer, corpus)
                await _the_consumer_goes_on(producer)
            _show(ends)
            assert stack.pid_of("consumer") == consumer
            await _nothing_is_left(stack, consumer)
            assert _most_memory_bytes(consumer) < MOST_MEMORY_BYTES
            assert "Traceback" not in "".join(log.read_text() for log in (stack.data / "logs").iterdir())
        _nobody_called(lure)
    assert [str(end) for end in ends if end.state not in end.file.ends] == []
    assert [str(end) for end in ends if not _is_clear(end)] == []
    assert [str(end) for end in ends if set(re.findall(r"\w+", end.text.lower())) & NEIGHBOUR_WORDS] == []
    assert len({end.job["worker"] for end in ends if end.job}) == 1  # the consumer never died


async def _run_all(producer: Producer, corpus: Sequence[HostileFile]) -> list[End]:
    """Submit every file, wait for all, and return their ends with what was heard."""
    places = asyncio.Semaphore(SUBMITTED_AT_A_TIME)

    async def submitted(number: int, file: HostileFile) -> End:
        async with places:
            try:
                job, _ = await producer.submit({"id": f"hostile-{number}", "source": file.source, "options": QUICK})
            except Refused as refusal:
                return End(file, refusal=refusal)
            return End(file, job)

    begun = await asyncio.gather(*(submitted(number, file) for number, file in enumerate(corpus)))
    ended = await wait_for_end(producer, [end.job["id"] for end in begun if end.job], lambda _: None)

    async def heard(end: End) -> End:
        if end.job is None:
            return end
        job = ended[end.job["id"]]
        async with places:
            completed = job["state"] == COMPLETED
            text = orjson.loads(await producer.transcript(job["id"], "json"))["text"] if completed else ""
        return End(end.file, job, text=text)

    return await asyncio.gather(*(heard(end) for end in begun))


async def _the_consumer_goes_on(producer: Producer) -> None:
    job, _ = await producer.submit({"source": str(EXAMPLES / "austen-2-young-man.wav")})
    await wait_for_end(producer, [job["id"]], lambda _: None)
    assert b"young man" in await producer.transcript(job["id"], "txt")


def _show(ends: Sequence[End]) -> None:
    print(f"\nseed {SEED}: {len(ends)} files, {dict(Counter(end.state for end in ends))}")
    for (kind, state), count in sorted(Counter((end.file.kind, end.state) for end in ends).items()):
        print(f"  {kind:16} {state:10} {count:4}")


def _is_clear(end: End) -> bool:
    """Whether an end explains itself: a failure is final at the first attempt, and its words are about the file."""
    if end.refusal is not None:
        return 400 <= end.refusal.status < 500 and len(str(end.refusal)) > 20
    assert end.job is not None
    if end.state == FAILED:
        return end.why["type"] in CLEAR and len(end.why["detail"]) > 20 and end.job["attempts"] == 1
    return end.state == COMPLETED


async def _nothing_is_left(stack: Up, consumer: int) -> None:
    """Wait until the consumer holds what an idle one holds: its decoders, and no scratch file."""
    scratch = stack.data / "scratch"

    def idle() -> bool:
        children = _children(consumer)
        open_files = [link for pid in (consumer, *children) for link in _files_of(pid) if str(scratch) in link]
        are_decoders = all("consumer.prepare_child" in command for command in children.values())
        # One that was ended is started again by the next job that it gets.
        return are_decoders and len(children) <= int(SETTINGS["STTREAM_PREPARE_PROCESSES"]) and not open_files

    await until(idle, within_s=30, what="an idle consumer, with its decoders below it and no scratch file")
    assert list(scratch.iterdir()) == []


def _children(pid: int) -> dict[int, str]:
    """Return the command lines of the processes that a process has started, of dead ones too ("")."""
    pids = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return {int(child): Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode() for child in pids}


def _files_of(pid: int) -> list[str]:
    """Return what a process has open or mapped."""
    found = Path(f"/proc/{pid}/maps").read_text().splitlines()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.fspath(link.readlink()))
    return found


def _most_memory_bytes(pid: int) -> int:
    """Return the most memory that a process ever held."""
    [line] = re.findall(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    print(f"  the consumer held {int(line) // 1024} MiB at most")
    return int(line) * 1024


def _nobody_called(lure: socket.socket) -> None:
    lure.setblocking(False)
    with pytest.raises(BlockingIOError):
        lure.accept()
