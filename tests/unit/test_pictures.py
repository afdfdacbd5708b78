"""Pictures of the benchmarks: they show what the tables say, or none is drawn."""

from __future__ import annotations

import pytest

from bench.pictures import DOCUMENT, OURS, QUEUE, SYSTEMS, TRANSCRIPTION, number, table, text

MARKDOWN = """
# Fruit

### Apples

Sweet ones. | is no table.

| kind | weight, g |
|---|---|
| **red** | 1,250.5 (3) |
| *green* | |

| aim | measured |
|---|---|
| sweet | yes |

### Pears

None yet.

### Plums

| kind |
|---|
"""


def test_a_table_is_its_rows_by_column():
    """The first table under the heading counts: what is aimed at stands below, and is not drawn."""
    assert table(MARKDOWN, "### Apples") == [
        {"kind": "**red**", "weight, g": "1,250.5 (3)"},
        {"kind": "*green*", "weight, g": ""},
    ]


@pytest.mark.parametrize(
    ("heading", "message"),
    [
        ("### Cherries", "no heading '### Cherries'"),
        ("### Apple", "no heading '### Apple'"),
        ("### Pears", "no table with a row under '### Pears'"),
        ("### Plums", "no table with a row under '### Plums'"),
    ],
)
def test_a_table_that_is_not_there_is_named(heading, message):
    """The next section's table instead would be a picture of something else."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        table(MARKDOWN, heading)


def test_a_row_with_a_cell_too_few_is_named():
    """Its figures would move to the columns of others."""
    with pytest.raises(ValueError, match="under '# A': 2 columns, but 1 cells in the row 'one'"):
        table("# A\n| a | b |\n|---|---|\n| one |", "# A")


@pytest.mark.parametrize(
    ("cell", "value"), [("36.7 (25.9)", 36.7), ("**13,557**", 13557), ("*26,390*", 26390), ("65", 65), ("0.49", 0.49)]
)
def test_a_cell_is_the_number_it_begins_with(cell, value):
    """What follows in brackets is another measure, and emphasis is none."""
    assert number({"a": cell}, "a") == value


@pytest.mark.parametrize("cell", ["", "missed", "(25.9)", "12s", "-3", ".166, .198"])
def test_a_cell_without_a_number_is_named(cell):
    """A bar of length 0 would look measured."""
    with pytest.raises(ValueError, match="column 'b' of the row 'one': no number at the beginning of"):
        number({"a": "one", "b": cell}, "b")


def test_a_missing_column_is_named():
    """A column was given another name: the message says which there are."""
    with pytest.raises(ValueError, match="no column 'c'; there are a, b"):
        text({"a": "one", "b": "two"}, "c")


def test_the_document_holds_what_the_pictures_need():
    """Whoever changes a heading, a column or a cell learns it here, not when the pictures are drawn next."""
    document = DOCUMENT.read_text(encoding="utf-8")
    for row in table(document, TRANSCRIPTION):
        assert text(row, "material")
        assert text(row, "beam")
        assert all(number(row, name) for name in SYSTEMS)
    queues = table(document, QUEUE)
    assert OURS in [text(row, "queue") for row in queues]
    assert all(number(row, name) for row in queues for name in ("drained/s", "worker µs", "server µs"))
