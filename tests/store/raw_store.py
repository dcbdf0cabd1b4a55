"""The file of a store as somebody sees it who has no key: plain SQLite, for looking at it and for damaging it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def raw_connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the file, closed at the end."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        yield db
    finally:
        db.close()


def alter(path: Path, statement: str, *values: object) -> None:
    """Run one statement on the file."""
    with raw_connection(path) as db:
        db.execute(statement, values)


def select(path: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """What one query finds in the file."""
    with raw_connection(path) as db:
        return db.execute(statement, values).fetchall()


def profile_rows(path: Path) -> set[int]:
    """The ids of the rows of profiles."""
    return {row for (row,) in select(path, "SELECT id FROM profile")}


def sealed_columns(path: Path, *tables: str) -> set[bytes]:
    """Every blob in these tables (by default in all)."""
    return {
        value
        for table in tables or ("store", "profile", "exemplar")
        for row in select(path, f"SELECT * FROM {table}")
        for value in row
        if isinstance(value, bytes) and len(value) > 16
    }


def count_rows(path: Path, table: str) -> int:
    """How many rows the table has."""
    return len(select(path, f"SELECT 1 FROM {table}"))


def pieces(blob: bytes) -> set[bytes]:
    """The runs of 12 bytes at its start that are not mere text, which a store in plaintext repeats."""
    runs = (blob[start : start + 12] for start in range(min(len(blob), 400) - 12))
    return {run for run in runs if max(run) > 126}


def pieces_of_file(path: Path) -> set[bytes]:
    """Every run of 12 bytes in the file."""
    content = path.read_bytes()
    return {content[start : start + 12] for start in range(len(content) - 11)}
