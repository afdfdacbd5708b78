"""Draws the pictures of docs/performance.md from the tables in it, so that the two never disagree.

    .venv/bin/python -m pip install matplotlib            (once; nothing else here needs it)
    .venv/bin/python -m bench.pictures

Writes docs/img/transcription.svg and docs/img/queue.svg. Run it after a table has changed; with the same tables and the
same matplotlib the files stay as they are, byte for byte.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
IMAGES = ROOT / "docs" / "img"

TRANSCRIPTION, QUEUE = "### On two cores", "### Beside others that run on Redis"
OURS = "sttream"
SYSTEMS = (OURS, "library", "batched, worker a core", "batched, one worker")

# 10 inches of 72 points are 720 points: as wide as the text of a page.
WIDTH_IN = 10.0
INK = "#1f2328"
# Ours, and the others: a strong and a light shade of each.
BLUE, LIGHT_BLUE = "#0a5fb4", "#86b9ea"
GREY, LIGHT_GREY = "#9aa4ae", "#d3d9df"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12,
    "text.color": INK,
    "xtick.bottom": False,
    "xtick.labelbottom": False,
    "ytick.left": False,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "svg.fonttype": "path",  # looks the same whatever fonts a reader has
    "svg.hashsalt": "sttream",  # identifiers are random otherwise
}

Row = Mapping[str, str]


def table(markdown: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table between a heading, with its `#`, and the next one: column → cell.

    Raises:
        ValueError: There is no such heading, no table with a row below it, or a row has too few or too many cells.
    """
    lines = markdown.splitlines()
    if heading not in lines:
        raise ValueError(f"no heading '{heading}'")
    found: list[list[str]] = []
    for line in lines[lines.index(heading) + 1 :]:
        if line.startswith("|"):
            found.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif found or re.match(r"#+ ", line):
            break
    if len(found) < 3:  # names, dashes, rows
        raise ValueError(f"no table with a row under '{heading}'")
    names, _, *rows = found
    for row in rows:
        if len(row) != len(names):
            raise ValueError(f"under '{heading}': {len(names)} columns, but {len(row)} cells in the row '{row[0]}'")
    return [dict(zip(names, row, strict=True)) for row in rows]


def text(row: Row, column: str) -> str:
    """Return a cell without its emphasis.

    Raises:
        ValueError: There is no such column.
    """
    if column not in row:
        raise ValueError(f"no column '{column}'; there are {', '.join(row)}")
    return row[column].replace("*", "")


def number(row: Row, column: str) -> float:
    """Return the number with which a cell begins: 36.7 of `36.7 (25.9)`, 1265 of `**1,265**`.

    Raises:
        ValueError: There is no such column, or the cell begins otherwise.
    """
    cell = text(row, column)
    begin = re.match(r"\d[\d,]*(\.\d+)?(?= |$)", cell)
    if begin is None:
        row_name = next(iter(row.values()))
        raise ValueError(f"column '{column}' of the row '{row_name}': no number at the beginning of '{cell}'")
    return float(begin[0].replace(",", ""))


def draw_transcription(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw a panel for each material (down) and beam size (across), with a bar for each system."""
    materials = list(dict.fromkeys(text(row, "material") for row in rows))
    beams = list(dict.fromkeys(text(row, "beam") for row in rows))
    panels = figure.subplots(len(materials), len(beams), sharex=True, sharey=True, squeeze=False)
    longest = max(number(row, name) for row in rows for name in SYSTEMS)
    panels[0][0].set_xlim(0, longest * 1.12)  # room for the number
    for row in rows:
        material, beam = text(row, "material"), text(row, "beam")
        axes = panels[materials.index(material)][beams.index(beam)]
        values = [number(row, name) for name in SYSTEMS]
        bars(axes, values, [f"{value:.1f}" for value in values], ours=SYSTEMS.index(OURS))
        axes.set_title(f"{material}, beam {beam}")
    for line in panels:
        name_bars(line[0], SYSTEMS)
    title = "Audio seconds a second on two cores; library and batched are faster-whisper's"
    figure.suptitle(title, x=0.01, ha="left", size=12)


def draw_queue(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw how many jobs a queue drains in a second, and beside it the processor time that each job takes."""
    names = [text(row, "queue") for row in rows]
    if OURS not in names:
        raise ValueError(f"no row '{OURS}' in the table of queues; there are {', '.join(names)}")
    ours = names.index(OURS)
    rates = [number(row, "drained/s") for row in rows]
    worker = [number(row, "worker µs") for row in rows]
    server = [number(row, "server µs") for row in rows]
    both = [one + other for one, other in zip(worker, server, strict=True)]
    left, right = figure.subplots(1, 2, sharey=True)

    bars(left, rates, [f"{rate:,.0f}" for rate in rates], ours)
    left.set_xlim(0, max(rates) * 1.25)
    left.set_title("Jobs drained a second,\none worker on two cores")
    name_bars(left, names)

    # One bar many times as long as the next would leave the others no length: it is cut.
    *_, second, longest = sorted(both)
    limit = second * 1.1 if longest > 3 * second else longest
    labels = [f"{one:,.0f} + {other:,.0f}" for one, other in zip(worker, server, strict=True)]
    bars(right, [min(value, limit) for value in both], labels, ours, LIGHT_BLUE, LIGHT_GREY)
    bars(right, [min(value, limit) for value in worker], None, ours)
    right.set_xlim(0, limit * 1.4)
    for at, value in enumerate(both):
        if value > limit:
            for x in (0.88, 0.91):
                right.plot([limit * x, limit * (x + 0.02)], [at + 0.5, at - 0.5], color="white", linewidth=3)
    right.set_title("Processor µs a job:\nworker (dark) + server (light)")


def bars(
    axes: Axes,
    values: Sequence[float],
    labels: Sequence[str] | None,
    ours: int,
    our_colour: str = BLUE,
    colour: str = GREY,
) -> None:
    """Draw bars from the top down, each with its label at its end; ours stands out."""
    colours = [our_colour if at == ours else colour for at in range(len(values))]
    drawn = axes.barh(range(len(values)), values, height=0.72, color=colours)
    if labels is not None:
        for at, label in enumerate(axes.bar_label(drawn, labels, padding=4)):
            label.set_fontweight("bold" if at == ours else "normal")


def name_bars(axes: Axes, names: Sequence[str]) -> None:
    """Write the names beside the bars, the first at the top; ours stands out."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if name == OURS else "normal")


def save(figure: Figure, path: Path) -> None:
    """Write a picture, without date, version and trailing blanks."""
    raw = io.StringIO()
    figure.savefig(raw, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    lines = [line.rstrip() for line in raw.getvalue().splitlines()]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


def main() -> None:
    """Draw both pictures."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as exc:
        sys.exit(f"{exc.name} is not installed: run `{sys.executable} -m pip install matplotlib`, then this again")
    markdown = DOCUMENT.read_text(encoding="utf-8")
    mpl.rcdefaults()  # not what this machine's matplotlibrc says
    mpl.rcParams.update(STYLE)
    for name, heading, height_in, draw in (
        ("transcription", TRANSCRIPTION, 7.6, draw_transcription),
        ("queue", QUEUE, 5.8, draw_queue),
    ):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained", facecolor="white")
        try:
            draw(figure, table(markdown, heading))
        except ValueError as exc:
            sys.exit(f"{DOCUMENT.relative_to(ROOT)}, for {name}.svg: {exc}")
        save(figure, IMAGES / f"{name}.svg")


if __name__ == "__main__":
    main()
