"""A CSV file whose rows are found once and read when asked for: eight bytes of memory per row."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 4 << 20
csv.field_size_limit(16 * BLOCK)  # 131,072 characters by default, of which a caption may have more
QUOTE, COMMA, NEWLINE = b'",\n'


def csv_columns(path: Path) -> list[str]:
    """The names in the first line of a CSV file; empty where it cannot be read as one."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            return next(csv.reader(handle), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


class CsvIndex:
    """The rows of a CSV file (commas, double quotes; line breaks inside quotes allowed) below the names of its columns.

    Rows with another number of cells than the first line are left out.

    Attributes:
        bad_rows: (number of the row, the first below the columns being 1; its number of cells) of each row left out.

    Raises:
        ValueError: A quotation is never closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = csv_columns(path)
        starts, ends, commas = (np.concatenate(part) for part in zip(*self._blocks(), strict=True))
        starts, ends, commas = starts[1:], ends[1:], commas[1:]  # without the line of the columns
        good = commas == len(self.columns) - 1
        filled = ends - starts > 2  # not just a line break
        bad = np.flatnonzero(~good & filled)
        self.bad_rows = [(int(k) + 1, int(commas[k]) + 1) for k in bad]
        self._starts, self._ends = (starts, ends) if good.all() else (starts[good & filled], ends[good & filled])
        self._descriptor: int | None = None

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Start, end and number of commas of the rows, block by block."""
        rest, offset = b"", 0  # what is left of the last block, and where that begins in the file
        with open(self.path, "rb") as handle:
            while True:
                block = handle.read(BLOCK)
                text = rest + block
                if not block and text and not text.endswith(b"\n"):
                    text += b"\n"
                data = np.frombuffer(text, np.uint8)
                quotes, newlines = np.flatnonzero(data == QUOTE), np.flatnonzero(data == NEWLINE)
                # Inside a quotation, an odd number of quotes came before (a doubled one counts twice).
                newlines = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
                if not len(newlines):
                    if not block and not text:
                        return
                    if not block or len(text) > 16 * BLOCK:
                        raise ValueError(f"{self.path}: a quotation that begins after byte {offset} is never closed")
                    rest = text
                    continue
                ends = newlines + 1
                commas = np.flatnonzero(data[: ends[-1]] == COMMA)
                commas = commas[np.searchsorted(quotes, commas) % 2 == 0]
                starts = np.concatenate([[0], ends[:-1]])
                yield starts + offset, ends + offset, np.diff(np.searchsorted(commas, ends), prepend=0)
                rest, offset = text[ends[-1] :], offset + int(ends[-1])

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, str]:
        """A row's cells by column."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        start, end = int(self._starts[index]), int(self._ends[index])
        # pread keeps no place in the file, so processes that were forked may share the descriptor.
        text = os.pread(self._descriptor, end - start, start).decode("utf-8", "replace")
        return dict(zip(self.columns, next(csv.reader(text.splitlines(keepends=True))), strict=False))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]
