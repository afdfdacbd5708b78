"""Search in both databases: what is stored is found, what is gone is not, and no query is more than words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, text

from common.database import Database, TerminalRecord
from common.search import Hit, Query, words_of
from common.tables import jobs
from tests.integration.database.test_database import completed, failed


def said(job_id: str, *texts: str, **more: Any) -> TerminalRecord:
    """A completed job in which each text is a segment of a second."""
    record = completed(job_id, **more)
    assert record.transcript is not None
    [segment] = record.transcript.segments
    each = [
        segment.model_copy(update={"id": n, "start": n, "end": n + 1, "text": text}) for n, text in enumerate(texts)
    ]
    return TerminalRecord(record.job, record.transcript.model_copy(update={"segments": tuple(each)}), record.stored_ms)


async def search(database: Database, query: str, **more: Any) -> list[Hit]:
    return await database.search(Query.parse(query), **more)


async def found(database: Database, query: str) -> list[str]:
    return [f"{hit.job_id}/{hit.number}" for hit in await search(database, query)]


async def test_a_stored_transcript_is_found_by_its_words(database: Database) -> None:
    """Who remembers a sentence finds the recording and the moment."""
    await database.store(
        [said("a", "And Mr. Dashwood", "had then leisure to consider"), said("b", "Nothing"), failed("c")]
    )

    assert await search(database, "Leisure then") == [Hit("a", 1_003, 1, 1.0, 2.0, "had ⟦then⟧ ⟦leisure⟧ to consider")]
    assert await found(database, '"leisure to"') == ["a/1"]
    assert await found(database, '"leisure consider"') == []
    assert await found(database, "dashwood leisure") == []  # not in one segment
    assert await found(database, "leis") == []  # not a whole word


async def test_a_replaced_transcript_is_found_by_its_new_words_only(database: Database) -> None:
    """Words of a run that is not the one recorded must not lead to the job."""
    await database.store([said("a", "first words")])
    await database.store([said("a", "second words", run=2)])
    await database.store([said("a", "first words")])

    assert await found(database, "first") == []
    assert await found(database, "second words") == ["a/0"]

    await database.store([failed("a", run=3)])
    assert await found(database, "words") == []


async def test_a_deleted_job_is_not_found(database: Database) -> None:
    """Whoever deletes a job for what was said in it deletes it from the index, too."""
    await database.store([said("a", "secret words"), said("b", "other words")])
    async with database._writing.begin() as connection:
        await connection.execute(delete(jobs).where(jobs.c.id == "a"))

    assert await found(database, "words") == ["b/0"]
    assert await found(database, "secret") == []


async def test_the_index_of_sqlite_holds_what_the_table_holds(tmp_path: Path) -> None:
    """Triggers keep it in step; a delete that told other words than the insert would spoil it in silence."""
    database = Database.open(f"sqlite:///{tmp_path / 'a.db'}")
    await database.migrate()
    await database.store([said("a", "Straße 开放 don't", "two"), said("b", "two")])
    await database.store([said("a", "three", run=2), failed("b", run=2)])
    async with database._writing.begin() as connection:
        await connection.execute(text("INSERT INTO segment_words(segment_words, rank) VALUES ('integrity-check', 1)"))
    await database.aclose()


@pytest.mark.parametrize(
    "query",
    [
        *('"', '"one', 'one"', '"one" "two', "'one'", "one'; DROP TABLE jobs; --", "one\\", "$1 one", ":words one"),
        *(
            "one AND two",
            "one OR nine",
            "NOT nine",
            "NEAR(one two)",
            "one*",
            "on*",
            "words:one",
            "^one",
            "-one",
            "+one",
        ),
        *("one & two", "one | nine", "!nine", "one <-> two", "one:*", "one:A", "(one", "{words}: one", "one\0two"),
        *("😀 one", "\ud800 one", "привет", "时间", "ﷺ one", "½ one", "a " * 500, "é" * 1000),
    ],
)
async def test_no_query_reaches_the_language_of_the_database(database: Database, query: str) -> None:
    """Each is words and nothing else: it finds the segments that hold them all, and never fails."""
    texts = ("one two", "nine", "Привет one and two", "开放时间")
    await database.store([said("a", *texts)])
    try:
        asked = Query.parse(query)
    except ValueError:
        return

    def holds(text: str, phrase: tuple[str, ...]) -> bool:
        return f" {' '.join(phrase)} " in f" {' '.join(word.folded for word in words_of(text))} "

    expected = [f"a/{n}" for n, text in enumerate(texts) if all(holds(text, phrase) for phrase in asked.phrases)]
    assert await found(database, query) == expected


@pytest.mark.parametrize(
    ("query", "hits"),
    [
        ("ПРИВЕТ", ["a/0"]),
        ("时间", ["a/1"]),
        ("放时", ["a/1"]),
        ("间时", []),
        ("カナ", ["a/2"]),
        ("ครับ", ["a/3"]),
        ("été", ["a/4"]),
    ],
)
async def test_other_scripts_are_found(database: Database, query: str, hits: list[str]) -> None:
    """Neither database cuts Chinese into words; its characters are words here, and a text of them a phrase."""
    await database.store([said("a", "Привет, мир", "开放时间", "カタカナ", "สวัสดีครับ", "L'e\u0301te\u0301")])
    assert await found(database, query) == hits


async def test_a_monstrous_segment_is_stored_and_found(database: Database) -> None:
    """An index entry that is too large, or a NUL, would make PostgreSQL refuse the transcript."""
    long = " ".join(f"{'𐐨' * 300}{number}" for number in range(5000))
    await database.store([said("a", f"one\0two ⟦three⟧ {long}", "x" * 100_000), said("b", "same " * 50_000)])

    assert (await search(database, "two three"))[0].snippet.startswith("one\ufffd⟦two⟧ [⟦three⟧] ")
    assert await found(database, "x" * 1000) == ["a/1"]
    assert await found(database, '"same same"') == ["b/0"]
    assert await database.transcript("a") is not None


async def test_pages_follow_each_other_without_gap_or_repeat(database: Database) -> None:
    """Newest first, and within a job as it was spoken; a page may end between two segments."""
    for name in ("d", "a", "B"):
        await database.store([said(name, *["word"] * 3, finished_ms=8 if name == "a" else 7)])

    pages, after = [], None
    while page := await search(database, "word", after=after, limit=2):
        pages.append([f"{hit.job_id}{hit.number}" for hit in page])
        after = (page[-1].finished_ms, page[-1].job_id, page[-1].number)
    assert pages == [["a0", "a1"], ["a2", "d0"], ["d1", "d2"], ["B0", "B1"], ["B2"]]
