"""What the subcommands print: exit statuses, JSON, errors, tables and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "EXIT_ACCEPT",
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "EXIT_NO_DECISION",
    "EXIT_REJECT",
    "console",
    "print_error",
    "print_json",
    "report_failure",
    "track",
]

EXIT_ACCEPT = 0
EXIT_REJECT = 1
EXIT_NO_DECISION = 2
EXIT_ERROR = 3
EXIT_INTERRUPTED = 130

Item = TypeVar("Item")


def console(stderr: bool = False) -> Console:
    """A rich console on standard output or standard error; plain text where that is not a terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON value on one line; a number that is not finite is a defect, not JSON."""
    print(json.dumps(value, allow_nan=False, ensure_ascii=False), flush=True)


def print_error(message: str) -> None:
    """Print ``emoinv: message`` on standard error."""
    print(f"emoinv: {message}", file=sys.stderr, flush=True)


def report_failure(error: Exception, as_json: bool) -> int:
    """Print an error for people on standard error, and for programs on standard output; return 3."""
    message = str(error) or type(error).__name__
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    print_error(f"error: {message}")
    return EXIT_ERROR


def track(items: Iterable[Item], description: str, total: int | None = None, show: bool = True) -> Iterator[Item]:
    """Yield `items` under a progress bar on standard error with the time left; no bar where `show` is false.

    Nothing is drawn where standard error is not a terminal.
    """
    if not show or not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, description, total=total, console=console(stderr=True), transient=True)
