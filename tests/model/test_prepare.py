"""The pool of decoder processes, with real processes and the real speech detector."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import structlog
from faster_whisper.audio import decode_audio

from common.errors import JobError, Unavailable
from consumer import prepare
from consumer.prepare import Prepared, PreparePool
from consumer.speech import SAMPLE_RATE_HZ, Span
from tests.recordings import EXAMPLES, cut, write_recording
from tests.until import until

ROOT = Path(__file__).resolve().parents[2]
SPEECH = EXAMPLES / "austen-2-young-man.wav"


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[PreparePool]:
    (tmp_path / "scratch").mkdir()
    async with PreparePool(processes=1, max_audio_s=600, scratch_dir=tmp_path / "scratch") as pool:
        yield pool
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.fixture
def stopped(pool: PreparePool) -> Iterator[int]:
    """A child that is stopped: its next request hangs until the child is killed."""
    [pid] = pool.pids
    os.kill(pid, signal.SIGSTOP)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def prepared(pool: PreparePool, path: Path, *, vad: bool = True, timeout_s: float = 60) -> Prepared:
    with path.open("rb") as source:
        return await pool.prepare(source.fileno(), vad=vad, timeout_s=timeout_s)


async def refusal(pool: PreparePool, path: Path, *, timeout_s: float = 60) -> JobError:
    with pytest.raises(JobError) as caught:
        await prepared(pool, path, timeout_s=timeout_s)
    return caught.value


def open_files(pid: int | str = "self") -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def process_file(pid: int | str, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


def threads_of(pid: int) -> list[str]:
    return [task.name for task in Path(f"/proc/{pid}/task").iterdir()]


def soft_limits(pid: int) -> dict[str, float]:
    """Return a process's limits, "unlimited" as infinity."""
    lines = process_file(pid, "limits").decode().splitlines()[1:]
    return {line[:26].strip(): float(line[26:].split()[0].replace("unlimited", "inf")) for line in lines}


def exists(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_a_recording_becomes_samples_and_spans(pool: PreparePool) -> None:
    """What the engine gets equals what faster-whisper would have decoded."""
    with await prepared(pool, SPEECH) as ready:
        expected = decode_audio(str(SPEECH))
        np.testing.assert_array_equal(ready.samples.astype(np.float32) / 32768.0, expected)
        assert ready.duration_s == pytest.approx(len(expected) / SAMPLE_RATE_HZ)
        [span] = ready.spans
        assert 0 <= span.start < span.end <= len(expected)
        assert not ready.samples.flags.writeable


async def test_without_detection_all_of_it_is_one_span(pool: PreparePool, tmp_path: Path) -> None:
    """Who switches detection off gets everything transcribed."""
    path = write_recording(tmp_path / "tone.wav", 5)
    with await prepared(pool, path, vad=False) as ready:
        assert ready.spans == [Span(0, 5 * SAMPLE_RATE_HZ)]
    with await prepared(pool, path) as ready:
        assert ready.spans == []


async def test_closing_lets_go_of_the_samples(pool: PreparePool) -> None:
    """Disk space comes back with the job, not with the process."""
    ready = await prepared(pool, SPEECH)
    assert b"(deleted)" in process_file("self", "maps")
    ready.close()
    ready.close()
    assert len(ready.samples) == 0


async def test_an_error_of_the_child_reaches_the_job(pool: PreparePool, tmp_path: Path) -> None:
    """The job fails with the words that say what was wrong, and the same child goes on."""
    (tmp_path / "notes.mp3").write_text("no sound here\n" * 100)
    pids = pool.pids
    error = await refusal(pool, tmp_path / "notes.mp3")
    assert (error.type, error.retryable) == ("audio_unreadable", False)
    assert "text" in error.detail
    error = await refusal(pool, cut(write_recording(tmp_path / "cut.wav", 20), 0.5))
    assert "truncated" in error.detail
    assert (await prepared(pool, SPEECH)).duration_s > 2
    assert pool.pids == pids


async def test_a_recording_over_the_limit_is_too_long(tmp_path: Path) -> None:
    """The limit of the settings reaches the child."""
    async with PreparePool(processes=1, max_audio_s=2) as pool:
        error = await refusal(pool, write_recording(tmp_path / "long.wav", 40))
    assert (error.type, error.retryable) == ("audio_too_long", False)


async def test_many_requests_share_the_children(tmp_path: Path) -> None:
    """More jobs than children wait their turn and get their own samples."""
    paths = [write_recording(tmp_path / f"{tenths}.wav", tenths / 10) for tenths in range(1, 31)]
    async with PreparePool(processes=3, max_audio_s=60) as pool:
        pids = pool.pids
        ready = await asyncio.gather(*(prepared(pool, path) for path in paths))
        assert [item.duration_s for item in ready] == [tenths / 10 for tenths in range(1, 31)]
        assert pool.pids == pids


async def test_requests_are_served_in_the_order_in_which_they_came(pool: PreparePool, tmp_path: Path) -> None:
    """No job starves behind later ones."""
    path = write_recording(tmp_path / "short.wav", 0.1)
    order: list[int] = []

    async def one(number: int) -> None:
        await prepared(pool, path)
        order.append(number)

    await asyncio.gather(*(one(number) for number in range(8)))
    assert order == list(range(8))


async def test_a_time_limit_kills_the_child_and_the_pool_goes_on(pool: PreparePool, stopped: int) -> None:
    """A file that FFmpeg never gets through costs its own job one attempt, and nothing else."""
    error = await refusal(pool, SPEECH, timeout_s=0.2)
    assert (error.type, error.retryable) == ("timed_out", True)
    assert not exists(stopped)
    assert (await prepared(pool, SPEECH)).duration_s > 2
    assert pool.pids not in ([], [stopped])


async def test_waiting_for_a_free_child_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pool is no fault of the file that waits."""
    release = asyncio.Event()

    async def answer_late(*_: object) -> bytes:
        await release.wait()
        return b"{}\n"

    monkeypatch.setattr(prepare._Child, "ask", answer_late)
    pool = PreparePool(processes=1, max_audio_s=60)
    first = asyncio.create_task(prepared(pool, SPEECH))
    behind = asyncio.create_task(prepared(pool, SPEECH, timeout_s=0.05))
    clock = asyncio.get_running_loop()
    over_at = clock.time() + 0.1
    await until(lambda: clock.time() > over_at, within_s=5, what="the limit of the second is over")
    release.set()
    assert (await first).spans == (await behind).spans == []


async def test_cancelling_a_job_kills_its_child(pool: PreparePool, stopped: int) -> None:
    """A cancelled job must not go on decoding for minutes in a process that others wait for."""
    task = asyncio.create_task(prepared(pool, SPEECH))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not exists(stopped)
    assert (await prepared(pool, SPEECH)).duration_s > 2


async def test_cancelling_a_job_that_waits_leaves_the_children_alone(pool: PreparePool, stopped: int) -> None:
    """The child belongs to the job before it."""
    first = asyncio.create_task(prepared(pool, SPEECH))
    second = asyncio.create_task(prepared(pool, SPEECH))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    os.kill(stopped, signal.SIGCONT)
    assert (await first).duration_s > 2
    assert pool.pids == [stopped]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_child_that_dies_fails_only_its_job(pool: PreparePool, stopped: int, how: signal.Signals) -> None:
    """A crash may be the file's fault or a lack of memory: attempts decide, and the pool goes on."""
    task = asyncio.create_task(refusal(pool, SPEECH))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    os.kill(stopped, how)
    with contextlib.suppress(ProcessLookupError):  # SIGKILL does not wait for it
        os.kill(stopped, signal.SIGCONT)
    error = await task
    assert (error.type, error.retryable) == ("decoder_crashed", True)
    assert how.name in error.detail
    assert (await prepared(pool, SPEECH)).duration_s > 2


async def test_a_file_that_burns_processor_time_is_not_tried_again(pool: PreparePool, stopped: int) -> None:
    """The kernel counts what the file costs, however busy the host is: another attempt would cost the same."""
    task = asyncio.create_task(refusal(pool, SPEECH))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    os.kill(stopped, signal.SIGXCPU)
    os.kill(stopped, signal.SIGCONT)
    error = await task
    assert (error.type, error.retryable) == ("audio_unreadable", False)
    assert "processor time" in error.detail
    assert (await prepared(pool, SPEECH)).duration_s > 2


async def test_processor_time_is_allowed_anew_for_each_recording(pool: PreparePool) -> None:
    """A child lives for thousands of recordings; the limit must be that of the one at hand."""
    for _ in range(2):
        used = sum(int(ticks) for ticks in process_file(pool.pids[0], "stat").split()[13:15]) / os.sysconf("SC_CLK_TCK")
        (await prepared(pool, SPEECH)).close()
        assert used + 19 < soft_limits(pool.pids[0])["Max cpu time"] < used + 60


async def test_a_child_that_died_idle_costs_no_job(pool: PreparePool) -> None:
    """The kernel may kill any process for its memory, an idle one too."""
    [pid] = pool.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not exists(pid), within_s=5, what="the child is dead")
    assert (await prepared(pool, SPEECH)).duration_s > 2


async def test_ctrl_c_on_the_terminal_does_not_reach_the_children(pool: PreparePool) -> None:
    """The parent drains on Ctrl-C: its children have to finish what they do."""
    [pid] = pool.pids
    assert os.getsid(pid) != os.getsid(0)
    os.kill(pid, signal.SIGINT)
    assert (await prepared(pool, SPEECH)).duration_s > 2
    assert pool.pids == [pid]


async def test_no_descriptor_and_no_process_is_left_behind(tmp_path: Path) -> None:
    """A consumer prepares millions of files; one leak a file would stop it within a day."""
    before = open_files()
    (tmp_path / "empty.wav").touch()
    async with PreparePool(processes=1, max_audio_s=60) as pool:
        (await prepared(pool, SPEECH)).close()
        [pid] = pool.pids
        here, there = open_files(), open_files(pid)
        for _ in range(5):
            (await prepared(pool, SPEECH)).close()
            await refusal(pool, tmp_path / "empty.wav")
        assert (open_files(), open_files(pid)) == (here, there)
    assert open_files() == before
    assert not exists(pid)


async def test_a_child_knows_no_secrets(pool: PreparePool) -> None:
    """A hostile file that takes a child over must not find the passwords of Redis and the database there."""
    [pid] = pool.pids
    names = {entry.split(b"=")[0].decode() for entry in process_file(pid, "environ").split(b"\0")}
    libraries = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE", "MALLOC_MMAP_THRESHOLD_"}
    assert names <= {"", "PYTHONPATH", "HOME"} | libraries


async def test_a_child_has_limits(pool: PreparePool) -> None:
    """What gets out of hand fails in the child before it hurts the host."""
    soft = soft_limits(pool.pids[0])
    assert soft["Max core file size"] == 0
    assert soft["Max open files"] <= 64
    assert soft["Max data size"] <= 4 * 1024**3


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is the kernel's")
async def test_all_threads_of_a_child_are_in_the_sandbox(pool: PreparePool) -> None:
    """One thread outside could do for the others what they may not."""
    [pid] = pool.pids
    threads = threads_of(pid)
    assert len(threads) > 1
    for thread in threads:
        status = process_file(pid, f"task/{thread}/status")
        assert b"NoNewPrivs:\t1\n" in status
        assert b"Seccomp:\t2\n" in status  # by a filter


async def test_protections_that_are_missing_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system decoders run all the same; the operator must know what they lack."""

    async def start_without(child: prepare._Child) -> None:
        child.missing = "a filter of system calls"

    monkeypatch.setattr(prepare._Child, "start", start_without)
    with structlog.testing.capture_logs() as lines:
        async with PreparePool(processes=2, max_audio_s=60):
            pass
    [line] = lines
    assert (line["event"], line["missing"]) == ("decoders_unprotected", "a filter of system calls")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("austen-*")), ids=lambda path: path.suffix)
async def test_the_sandbox_lets_every_format_be_decoded(pool: PreparePool, path: Path) -> None:
    """What a library loads on first use must be loaded before."""
    pids = pool.pids
    assert (await prepared(pool, path)).spans
    assert pool.pids == pids


async def test_a_film_with_subtitles_is_decoded_in_the_sandbox(pool: PreparePool, tmp_path: Path) -> None:
    """PyAV loads its code for subtitles when it meets some, which the sandbox would not let it."""
    with av.open(str(tmp_path / "film.mkv"), "w") as film:
        sound = film.add_stream("pcm_s16le", rate=16_000, layout="mono")
        words = film.add_mux_stream("subrip")
        for stream, content in ((sound, bytes(32_000)), (words, b"Hello")):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 1000)
            film.mux(packet)
    pids = pool.pids
    assert (await prepared(pool, tmp_path / "film.mkv")).duration_s == 1
    assert pool.pids == pids


async def test_a_missing_scratch_folder_is_worth_another_attempt(pool: PreparePool, tmp_path: Path) -> None:
    """A full or unmounted scratch disk says nothing about the recording."""
    (tmp_path / "scratch").rmdir()
    error = await refusal(pool, SPEECH)
    assert (error.type, error.retryable) == ("internal_error", True)
    (tmp_path / "scratch").mkdir()
    assert (await prepared(pool, SPEECH)).duration_s > 2


async def test_a_child_that_cannot_start_stops_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation shows at the start, not as failed jobs."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    pool = PreparePool(processes=2, max_audio_s=60)
    with pytest.raises(Unavailable, match="exit code 1"):
        await pool.start()


@pytest.mark.parametrize(
    "line",
    [b"{]\n", b"[]\n", b'{"samples":5,"spans":[]}\n', b'{"samples":-1}\n', b'{"spans":[[0,9]]}\n', b'{"error":{}}\n'],
)
def test_an_answer_that_makes_no_sense_is_a_crash(line: bytes) -> None:
    """A child that a hostile file took over may say anything; it must not reach the engine."""
    with tempfile.TemporaryFile(buffering=0) as scratch, pytest.raises(prepare._ChildDied):
        prepare._read_answer(line, scratch)


ORPHANS = """
import asyncio, sys
from pathlib import Path
from consumer.prepare import PreparePool

async def main():
    async with PreparePool(processes=2, max_audio_s=9e9) as pool:
        with open(sys.argv[1], "rb") as source:
            task = asyncio.create_task(pool.prepare(source.fileno(), vad=True, timeout_s=600))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            print(*pool.pids, flush=True)
            await task

asyncio.run(main())
"""


async def test_children_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    """A consumer that is killed must not leave processes that decode for nobody."""
    path = write_recording(tmp_path / "long.wav", 1)
    with path.open("r+b") as recording:
        recording.seek(40)
        recording.write((7200 * 32_000).to_bytes(4, "little"))
        recording.truncate(44 + 7200 * 32_000)  # two hours of silence, without the disk space
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ORPHANS, str(path)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(exists(pid) for pid in pids)
    parent.kill()
    await parent.wait()
    await until(lambda: not any(exists(pid) for pid in pids), within_s=10, what="the children are gone")
