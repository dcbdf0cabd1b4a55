"""Progress of long work on standard error: what, how far, how fast, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

__all__ = ["Progress", "Report", "silent", "time_left"]

Report = Callable[[int, int], None]
"""What long work calls as it goes: (done, total). A `Progress` is one."""

TERMINAL_S = 0.2  # between updates of a terminal's line
LOG_S = 30.0  # between lines in a log


def time_left(seconds: float) -> str:
    """Seconds as ``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def silent(done: int, total: int) -> None:
    """The report of work that nobody watches."""


class Progress:
    """A line of how far the work is; call it with (done, total).

    Parameters
    ----------
    what : str
    stream : text stream
        On a terminal one line is rewritten; elsewhere a line appears every `LOG_S` seconds and at the end.
    """

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self._what = what
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done, and a note, if the last time is long enough ago."""
        now = time.monotonic()
        if self._first is None:
            self._first = done - 1  # what was there before this work began is not part of its speed
        if done < total and now - self._last < (TERMINAL_S if self._terminal else LOG_S):
            return
        self._last = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        if done < total:
            line = f"{self._what}: {done} of {total}, {rate:.3g} a second, {time_left((total - done) / rate)} left"
        else:
            line = f"{self._what}: {total} in {time_left(now - self._start)}"
        line += f"; {note}" if note else ""
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{line}" + ("\n" if done >= total else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
