"""The batcher: jobs take turns, batches are of one kind and full, and nobody waits for company."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.batcher import Batcher


@dataclass(frozen=True)
class Item:
    """Something that waits."""

    job: str
    kind: str = "short"
    number: int = 0


def batcher_of(*items, takers=1):
    batcher = Batcher(takers)
    for item in items:
        batcher.put(item)
    return batcher


def test_a_long_job_does_not_keep_short_ones_waiting():
    """A ten-hour recording that came first must not delay a voice message by ten hours."""
    long = [Item("long", number=number) for number in range(10)]
    batcher = batcher_of(*long, Item("a"), Item("b"))

    assert batcher.take(3) == [long[0], Item("a"), Item("b")]
    assert batcher.take(3) == long[1:4]


def test_short_jobs_fill_the_batches_of_long_ones():
    """A batch that is half empty costs as much as a full one."""
    long = [Item("long", number=number) for number in range(2)]
    batcher = batcher_of(*long, Item("a"))

    assert batcher.take(8) == [long[0], Item("a"), long[1]]


def test_little_work_is_shared():
    """One thread would read all of a short queue while the others, and their cores, look on."""
    batcher = batcher_of(*(Item(job) for job in "abcde"), takers=2)

    assert [len(batcher.take(8)) for _ in range(3)] == [3, 1, 1]


def test_much_work_fills_batches():
    """Shares are for what would not fill the batches of all."""
    batcher = batcher_of(*(Item(job) for job in "abcdefghij"), takers=2)

    assert len(batcher.take(3)) == 3


def test_a_batch_is_of_one_kind():
    """The model takes no two lengths, beams or temperatures in one call."""
    batcher = batcher_of(Item("a", "short"), Item("b", "long"), Item("c", "short"), Item("a", "long"))

    assert batcher.take(8) == [Item("a", "short"), Item("c", "short")]
    assert batcher.take(8) == [Item("b", "long"), Item("a", "long")]


def test_a_rare_kind_is_not_put_off_by_a_common_one():
    """Whoever asks for a larger beam than all others must get it, too."""
    batcher = batcher_of(Item("rare", "beam 10"), Item("a"))
    batcher.put(Item("a", number=1))

    assert batcher.take(8) == [Item("rare", "beam 10")]


def test_jobs_take_turns_from_batch_to_batch():
    """Who was served goes to the end of the line."""
    batcher = batcher_of(*(Item(job, number=number) for job in "abc" for number in range(2)))

    assert [[item.job for item in batcher.take(2)] for _ in range(3)] == [["a", "b"], ["c", "a"], ["b", "c"]]


def test_a_thread_that_waits_gets_what_comes():
    """An engine without work sleeps."""
    batcher, taken = Batcher(1), []
    thread = threading.Thread(target=lambda: taken.extend(batcher.take(4)))
    thread.start()
    batcher.put(Item("a"))
    thread.join(10)

    assert taken == [Item("a")]


def test_a_closed_batcher_gives_nothing_and_wakes_who_waits():
    """A process that ends must not hang on its engine."""
    batcher, taken = Batcher(1), []
    thread = threading.Thread(target=lambda: taken.append(batcher.take(4)))
    thread.start()
    batcher.close()
    thread.join(10)
    batcher.put(Item("a"))

    assert taken == [[]]
    assert batcher.take(1) == []


@pytest.mark.parametrize("most", [1, 3, 8])
@given(st.lists(st.builds(Item, st.sampled_from("abcd"), st.sampled_from(["x", "y"]), st.integers(0, 9)), max_size=40))
def test_nothing_is_lost_or_taken_twice(most, items):
    """Whatever waits comes out once, each job's chunks of a kind in their order."""
    batcher = batcher_of(*items)
    taken = []
    while len(taken) < len(items):
        batch = batcher.take(most)
        assert 0 < len(batch) <= most
        assert len({item.kind for item in batch}) == 1
        taken += batch

    for job in "abcd":
        for kind in "xy":
            of_one = [item for item in items if (item.job, item.kind) == (job, kind)]
            assert [item for item in taken if (item.job, item.kind) == (job, kind)] == of_one
