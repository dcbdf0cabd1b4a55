"""What the subcommands print: exit statuses, JSON, errors, decisions and progress."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

    from ..decision import Decision
    from ..quality import SpeechQuality

__all__ = [
    "EXIT_ACCEPT",
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "EXIT_NO_DECISION",
    "EXIT_REJECT",
    "LoggedToTerminal",
    "console",
    "decision_fields",
    "escape_unencodable",
    "exit_status",
    "legible",
    "one_in",
    "print_error",
    "print_json",
    "quality_fields",
    "report_failure",
    "shown",
    "track",
    "verdict_text",
]

EXIT_ACCEPT = 0
EXIT_REJECT = 1
EXIT_NO_DECISION = 2
EXIT_ERROR = 3
EXIT_INTERRUPTED = 130

OF_THE_VOICE = frozenset({"log_f0_mean", "log_f0_std", "envelope"})
STYLES = {"ACCEPT": "green", "REJECT": "red", "NO_DECISION": "yellow"}

Item = TypeVar("Item")


def console(stderr: bool = False) -> Console:
    """A rich console on standard output or standard error; plain text where that is not a terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False)  # names and notes are shown as they are


def shown(text: str) -> str:
    """A text from elsewhere (a note, a name, what a file claims of itself) as a terminal may show it.

    Whatever moves the cursor, changes colours or the direction of writing is written as an escape.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_json(value: Any) -> None:
    """Print one JSON value on one line, in ASCII; a number that is not finite is a defect, not JSON."""
    print(json.dumps(value, allow_nan=False), flush=True)


def print_error(message: str) -> None:
    """Print ``emoinv: message`` on standard error, with control characters escaped."""
    print(f"emoinv: {legible(message)}", file=sys.stderr, flush=True)


def legible(text: str) -> str:
    """A text with what a terminal would act on, and what no encoding holds, escaped; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def escape_unencodable() -> None:
    """Let standard output and error escape what their encoding lacks: a decision must not fail to be printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def quality_fields(quality: SpeechQuality | None, verbose: bool) -> dict[str, Any] | None:
    """The circumstances of speech as a JSON object; pitch and envelope, which are the voice's, if `verbose`."""
    if quality is None:
        return None
    fields = dataclasses.asdict(quality)
    return fields if verbose else {name: value for name, value in fields.items() if name not in OF_THE_VOICE}


class LoggedToTerminal(logging.Handler):
    """Shows what the library has to say beside its answers as ``emoinv: ...`` on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        print_error(self.format(record))


def report_failure(error: Exception, as_json: bool) -> int:
    """Print an error for people on standard error, and for programs on standard output; return 3."""
    message = str(error) or type(error).__name__
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message}})
    print_error(f"error: {message}")
    return EXIT_ERROR


def exit_status(decision: Decision) -> int:
    """0 for ACCEPT, 1 for REJECT, 2 for NO_DECISION."""
    return {"ACCEPT": EXIT_ACCEPT, "REJECT": EXIT_REJECT, "NO_DECISION": EXIT_NO_DECISION}[decision.verdict.name]


def verdict_text(decision: Decision) -> str:
    """The verdict for a rich console, in its colour."""
    name = decision.verdict.name
    return f"[{STYLES[name]}]{name.replace('_', ' ')}[/]"


def decision_fields(decision: Decision, verbose: bool = False) -> dict[str, Any]:
    """A decision as a JSON object: its fields, with the verdict as "accept", "reject" or "no_decision".

    What describes the voice itself is in it only if `verbose`.
    """
    fields = dataclasses.asdict(decision)
    fields["quality"] = quality_fields(decision.quality, verbose)
    fields["verdict"] = decision.verdict.name.lower()
    fields["expires"] = decision.expires.isoformat() if decision.expires else None
    return fields


def one_in(rate: float) -> str:
    """A rate in words: ``1 in 100``."""
    return f"1 in {1.0 / rate:,.0f}" if rate <= 0.2 else f"{rate:.0%}"


def track(items: Sequence[Item], description: str, show: bool = True) -> Iterator[Item]:
    """Yield `items` under a progress bar on standard error with the time left.

    Nothing is drawn where `show` is false or standard error is not a terminal.
    """
    if not show or not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, description, console=console(stderr=True), transient=True)
