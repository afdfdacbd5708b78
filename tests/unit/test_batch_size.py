"""The batch size: grown while it pays, never beyond what the device takes."""

from __future__ import annotations

import pytest

from consumer.batch_size import best_batch_size


class Device:
    """Takes a fixed time for a call, and some for each chunk in it."""

    def __init__(self, call_s, chunk_s, most=10_000):
        self.call_s, self.chunk_s, self.most = call_s, chunk_s, most
        self.now_s = 0.0
        self.tried = []

    def try_batch(self, size):
        self.tried.append(size)
        if size > self.most:
            raise RuntimeError("CUDA failed with error out of memory")
        self.now_s += self.call_s + size * self.chunk_s


@pytest.mark.parametrize(
    ("call_s", "chunk_s", "best"),
    [
        (0.01, 0.0001, 64),  # a GPU: the call is nearly all
        (0.1, 0.04, 32),
        (0.0, 0.1, 1),  # a CPU that gains nothing
    ],
)
def test_it_grows_while_a_second_does_more_work(call_s, chunk_s, best):
    """Larger batches cost memory and delay: they must bring something."""
    device = Device(call_s, chunk_s)

    assert best_batch_size(device.try_batch, 60.0, clock=lambda: device.now_s) == best


def test_it_stops_at_what_the_device_takes():
    """An out of memory at the start is no reason not to start."""
    device = Device(0.01, 0.0001, most=8)

    assert best_batch_size(device.try_batch, 60.0, clock=lambda: device.now_s) == 8
    assert device.tried[-1] == 16


def test_a_large_model_on_a_small_machine_does_not_delay_the_start():
    """Where one chunk takes half a minute nobody waits for a trial of two."""
    device = Device(10.0, 20.0)

    assert best_batch_size(device.try_batch, 1.0, clock=lambda: device.now_s) == 1
    assert device.tried == [1, 1]
