"""The recordings that a command is given: read one after the other, so that a bad one costs itself only.

`verify`, `identify`, `embed` and `compare` take what this module adds to their parsers; the answers to several
recordings are one line or JSON object each, and, with ``--csv``, a table.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import AudioError, OutOfMemoryError
from .options import positive
from .terminal import console, decision_fields, one_in, print_error, print_json, shown, verdict_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..decision import Decision

__all__ = [
    "Recording",
    "Table",
    "add_audio",
    "add_csv",
    "add_recordings",
    "answers",
    "explained",
    "open_recording",
    "print_decision",
    "waveform_of",
]

Answer = TypeVar("Answer")

MOST_S = 7 * 86400.0
# Reasons of a decision that could not be made which mixing a bad channel in explains.
DROWNED = ("too_quiet", "too_short", "too_noisy", "clipped", "no_voice", "second_voice")


@dataclasses.dataclass(slots=True, eq=False)
class Recording:
    """One recording, or one channel of one.

    Parameters
    ----------
    file : str
        The path as it is shown: undecodable bytes and control characters escaped.
    channel : int or None
        The channel, counted from 1, where each is a recording of its own.
    blocks : iterator of ndarray, shape (samples,), float32 in [-1, 1]
        Mono at the rate asked for; AudioError where it cannot be read.
    notes : list of str
        What was odd about it; complete once the blocks are read.
    """

    file: str
    channel: int | None
    blocks: Iterator[NDArray[np.float32]]
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        """The file, and the channel where there is one."""
        return self.file if self.channel is None else f"{self.file} (channel {self.channel})"


def parse_channel(text: str) -> int | str:
    """``mix``, ``each`` or a number from 1."""
    if text in ("mix", "each"):
        return text
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 64:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected mix, each or a channel's number from 1, got {text!r}")


def parse_one_channel(text: str) -> int | str:
    """``mix`` or a number from 1, where one recording of one person is wanted."""
    channel = parse_channel(text)
    if channel == "each":
        raise argparse.ArgumentTypeError("each channel apart would be several people here; give mix or one number")
    return channel


def add_recordings(parser: argparse.ArgumentParser) -> None:
    """Add the recordings, one or more."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="file", help="recordings (WAV, FLAC, OGG, MP3, ...); - is standard input"
    )


def add_audio(parser: argparse.ArgumentParser, *, each: bool = False) -> None:
    """Add ``--channel``, with ``each`` where every channel may be a recording of its own, and ``--max-duration``."""
    choices = "N|mix|each" if each else "N|mix"
    parser.add_argument(
        "--channel",
        type=parse_channel if each else parse_one_channel,
        default="mix",
        metavar=choices,
        help="one channel, counted from 1, " + ("or each apart, " if each else "") + "or the mean (default)",
    )
    parser.add_argument(
        "--max-duration",
        type=positive("seconds", MOST_S),
        default=7200.0,
        metavar="S",
        help="refuse recordings of more seconds (default: 7200)",
    )


def add_csv(parser: argparse.ArgumentParser) -> None:
    """Add ``--csv``."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table too, one row a recording")


def answers(
    args: argparse.Namespace, rate: int, table: Table, answer: Callable[[Recording], Answer]
) -> Iterator[tuple[Recording, Answer | None, float]]:
    """Each recording of ``args.files``, or each channel of it, its answer, and the ms that took.

    One of several that cannot be read is printed, and has no answer; what is wrong with a lone one is the command's own
    error.
    """
    alone = len(args.files) == 1 and args.channel != "each"
    for path in args.files:
        for recording in open_recording(path, rate, args.channel, args.max_duration):
            start = time.perf_counter()
            try:
                found = answer(recording)
            except (AudioError, OutOfMemoryError) as error:
                if alone:
                    raise
                message = str(error)
                if args.json:
                    kind = {"type": type(error).__name__, "message": message}
                    print_json({"file": recording.file, "channel": recording.channel, "error": kind})
                print_error(message)
                table.add(recording, error=message)
                yield recording, None, 0.0
            else:
                yield recording, found, 1000.0 * (time.perf_counter() - start)


def open_recording(
    path: Path, rate: int, channel: int | Literal["mix", "each"], max_duration_s: float
) -> Iterator[Recording]:
    """One file's recording, or with ``each`` those of its channels."""
    from ..audio import read_blocks, read_channels
    from ..decoding import shown

    file = shown(path)
    if channel != "each":
        notes: list[str] = []
        blocks = read_blocks(path, rate, channel=channel, max_duration_s=max_duration_s, notes=notes)
        yield Recording(file, None, blocks, notes)
        return
    try:
        waveforms, found = read_channels(path, rate, max_duration_s=max_duration_s)
    except AudioError as error:
        yield Recording(file, None, _failing(error))
        return
    for number, waveform in enumerate(waveforms, start=1):
        yield Recording(file, number, iter([waveform]), list(found))


def _failing(error: AudioError) -> Iterator[NDArray[np.float32]]:
    yield from ()
    raise error  # where the recording is read


def waveform_of(recording: Recording) -> NDArray[np.float32]:
    """The whole recording as one array, for what cannot take it in blocks."""
    from ..audio import gather

    return gather(recording.blocks)


def print_decision(
    args: argparse.Namespace,
    decision: Decision,
    speaker: str,
    recording: Recording,
    took_ms: float,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the decision on a recording: one line, or one JSON object with ``--json``."""
    if args.json:
        fields = {
            **decision_fields(decision, args.verbose),
            **(more or {}),
            "file": recording.file,
            "channel": recording.channel,
        }
        print_json({**fields, "notes": recording.notes, "ms": round(took_ms, 1)})
        return
    for note in (*recording.notes, *filter(None, [decision.warning])):
        print_error(f"{recording.label}: {note}")
    line = decision.reason
    if decision.score is not None and decision.quality is not None:
        marked = ", extrapolated" if decision.extrapolated else ""
        line += (
            f"  (threshold for {one_in(args.far)} impostors{marked}; "
            f"{decision.quality.net_speech_s:.1f} s of speech, {took_ms:.0f} ms)"
        )
    from rich.markup import escape

    several = len(args.files) > 1 or recording.channel is not None
    line = escape(f"{speaker}  {line}" + (f"  {recording.label}" if several else ""))
    console().print(f"{verdict_text(decision)}  {shown(line)}", soft_wrap=True)


def explained(decision: Decision, notes: Sequence[str]) -> Decision:
    """The decision, with what mixing did to its channels as the reason where that is why none could be made."""
    about_channels = [note for note in notes if note.startswith("channel")]
    if decision.code not in DROWNED or not about_channels:
        return decision
    return dataclasses.replace(decision, reason=f"{about_channels[0]} ({decision.reason})", code="channels")


class Table:
    """The table of ``--csv``: a row a recording, written as the answers come; without a path nothing is kept.

    Parameters
    ----------
    path : path or None
    names : sequence of str
        Speakers whose scores get a column each.
    """

    COLUMNS = ("file", "channel", "verdict", "speaker", "score", "threshold", "cosine", "net_speech_s", "snr_db")
    LAST = ("code", "reason", "error")

    def __init__(self, path: Path | None, names: Sequence[str] = ()) -> None:
        self._scores = {name: f"LLR {name}" for name in names}
        self._stack = contextlib.ExitStack()
        self._writer: csv.DictWriter[str] | None = None
        self._file: IO[str] | None = None
        if path is not None:
            self._file = self._stack.enter_context(path.open("w", newline="", encoding="utf-8"))
            self._writer = csv.DictWriter(self._file, [*self.COLUMNS, *self._scores.values(), *self.LAST])
            self._writer.writeheader()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def add(
        self,
        recording: Recording,
        decision: Decision | None = None,
        scores: dict[str, float] | None = None,
        error: str = "",
    ) -> None:
        """Write a row for a decision, or for what could not be read."""
        if self._writer is None or self._file is None:
            return
        row: dict[str, Any] = {"file": recording.file, "channel": recording.channel, "error": error}
        if decision is not None:
            quality = decision.quality
            row |= {
                "verdict": decision.verdict.name.lower(),
                "speaker": decision.speaker,
                "score": decision.score,
                "threshold": decision.threshold,
                "cosine": decision.cosine,
                "net_speech_s": None if quality is None else round(quality.net_speech_s, 3),
                "snr_db": None if quality is None else round(quality.snr_db, 1),
                "code": decision.code,
                "reason": decision.reason,
            }
        row |= {column: (scores or {}).get(name) for name, column in self._scores.items()}
        self._writer.writerow(row)
        self._file.flush()
