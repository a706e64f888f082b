"""Tables on terminals of any width and in pipes: every number is whole."""

import io
import re

import pytest
from rich.console import Console

from contentmotion.tables import markdown_table, print_table

HEADINGS = ("", "clips", "FVD", "extra-\npolated", "PSNR", "LPIPS", "nearest\n(pixels)")
NAMES = ("real clips", "frozen at the content frame", "motion for true content frames", "full generation")
ROWS = [[name, "2048", f"{k}757.1 ±12.3", "1234", "31.23", f"0.{k}23", "12.5%"] for k, name in enumerate(NAMES)]


def shown(width: int | None, *arguments: object, **changes: object) -> list[str]:
    """The lines on a terminal of a width; None: in a pipe."""
    file = io.StringIO()
    console = Console(file=file, width=width or 80, force_terminal=width is not None, color_system=None)
    print_table(*arguments, **changes, console=console)  # type: ignore[arg-type]
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [200, 100, 80, 79, 60, 45])
def test_numbers_are_whole_at_every_width(width: int) -> None:
    lines = shown(width, HEADINGS, ROWS)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for row in ROWS:
        for cell in row[1:]:
            assert text.count(cell) >= sum(other.count(cell) for other in row)
    words = set(re.findall(r"[a-z()]+", " ".join(NAMES)))
    assert all(word in text for word in words)


def test_a_wide_table_in_a_pipe_is_one_table() -> None:
    lines = shown(None, HEADINGS, ROWS)
    assert len(lines) == 5 + len(ROWS) and len({len(line) for line in lines}) == 1 and len(lines[0]) > 80
    assert [line.count("│") for line in lines if "757.1" in line] == [len(HEADINGS) + 1] * len(ROWS)


def test_a_table_that_fits_is_not_turned() -> None:
    assert shown(200, HEADINGS, ROWS) == shown(None, HEADINGS, ROWS)
    first = [line.split("│")[1].strip() for line in shown(60, HEADINGS, ROWS) if line.startswith("│")]
    assert {"FVD", "extrapolated", "nearest (pixels)"} <= set(first), "rows became columns"


def test_groups_markup_and_long_text() -> None:
    rows = [["a", "[bold]x[/bold]", "1"], ["a", "y", "2"], ["b", "z", "3"]]
    lines = shown(80, ("system", "stage", "s"), rows, text=(0, 1))
    assert "[bold]x[/bold]" in "\n".join(lines), "cells are no markup"
    assert [line.split("│")[1].strip() for line in lines if line.startswith("│")] == ["a", "", "b"]
    path = "/a/very/long/path/of/one/word/" * 3
    lines = shown(40, (), [["file", path]], text=(0, 1))
    assert max(map(len, lines)) <= 40
    assert "".join(line.split("│")[2].strip() for line in lines if line.startswith("│")) == path


def test_markdown_keeps_its_columns() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | --- |\n| x/y | 1 |\n"
