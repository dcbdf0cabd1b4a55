"""``emoinv listen``: who is speaking, live from a microphone, or from a file along the same path."""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from ..errors import AudioError, EnrolmentError
from .options import add_command, add_session, add_shared, note_verified, open_encoder, open_store, parse_device
from .recordings import add_audio
from .terminal import (
    EXIT_ACCEPT,
    EXIT_NO_DECISION,
    EXIT_REJECT,
    console,
    decision_fields,
    print_error,
    print_json,
    shown,
    verdict_text,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType

    from ..decision import Decision, Verdict
    from ..encoder import Encoder
    from ..microphone import Gap
    from ..store import ProfileStore
    from ..stream import VerificationStream

    Chunks = Iterable[NDArray[np.float32] | Gap]

__all__ = ["add_parser", "file_chunks", "listen", "run"]

CHUNK_S = 0.02
REFRESH_S = 0.1
AUDIT_EVERY_S = 60.0
BLIP_S = 0.3
LAST_DECISIONS = 8
METER_FLOOR_DB = -60.0
BAR = 40


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv listen``."""
    parser = add_command(
        subparsers,
        "listen",
        "Listen to a microphone, or a file, and name the enrolled speaker who is speaking, until ctrl-C.",
        "emoinv listen -- ana bob",
    )
    parser.add_argument("names", nargs="+", metavar="name", help="the enrolled speakers to listen for")
    parser.add_argument("--file", type=Path, metavar="FILE", help="listen to this recording instead of a microphone")
    add_audio(parser)
    parser.add_argument("--realtime", action="store_true", help="with --file: as slowly as it was spoken")
    parser.add_argument(
        "--device", type=parse_device, metavar="NAME|INDEX", help="the microphone (`emoinv doctor` lists them)"
    )
    parser.add_argument("--retry", action="store_true", help="wait for a microphone that was unplugged")
    parser.add_argument("--until-accept", action="store_true", help="stop at the first accepted utterance")
    add_session(parser)
    detectors, help_ = ("webrtc", "silero"), "webrtc (default) or silero finds the speech"
    parser.add_argument("--vad", choices=detectors, default="webrtc", metavar="NAME", help=help_)
    parser.add_argument(
        "--refuse-replays",
        action="store_true",
        help="no decision on a played-back recording of what was heard earlier; keeps sealed fingerprints (one name)",
    )
    add_shared(parser, run, far=True, store=True, verbose=True)


class View:
    """What shows the events of a stream; this one shows nothing."""

    rate = 16000  # of the times in decisions, from the start of listening on

    def start(self, stream: VerificationStream, source: str) -> None:
        """Listening begins."""
        self.rate = stream.verifier.encoder.spec.sample_rate

    def heard(self, chunk: NDArray[np.float32], stream: VerificationStream) -> None:
        """A chunk was taken."""

    def decided(self, decision: Decision) -> None:
        """A decision was made, provisional or final."""

    def lost(self, gap: Gap, stream: VerificationStream) -> None:
        """Audio was lost."""

    def end(self, stream: VerificationStream) -> None:
        """Listening is over."""

    def is_blip(self, decision: Decision) -> bool:
        """Whether this is a click or a cough, which a person watching need not read about."""
        return decision.score is None and 0 < decision.end - decision.start < BLIP_S * self.rate


class Json(View):
    """One JSON object a line: ``start``, ``speech``, ``decision``, ``gap``, ``end``."""

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose
        self._speaking = False

    def start(self, stream: VerificationStream, source: str) -> None:
        """Print what is listened to, for whom, and from which LLR on a speaker is accepted."""
        super().start(stream, source)
        verifier = stream.verifier
        print_json(
            {
                "event": "start",
                "source": source,
                "speakers": list(verifier.speakers),
                "model": verifier.encoder.spec.name,
                "fingerprint": verifier.encoder.fingerprint,
                "sample_rate": self.rate,
                "threshold": stream.threshold.llr,
                "target_far": verifier.threshold.target_far,
                "extrapolated": stream.threshold.extrapolated,
            }
        )

    def heard(self, chunk: NDArray[np.float32], stream: VerificationStream) -> None:
        """Print when speech begins and ends."""
        if stream.in_speech is not self._speaking:
            self._speaking = stream.in_speech
            print_json({"event": "speech", "speaking": self._speaking, "time_s": self._seconds(stream.position)})

    def decided(self, decision: Decision) -> None:
        """Print the decision with its times in seconds too."""
        times = {"start_s": self._seconds(decision.start), "end_s": self._seconds(decision.end)}
        print_json({"event": "decision", **decision_fields(decision, self._verbose), **times})

    def lost(self, gap: Gap, stream: VerificationStream) -> None:
        """Print what was lost."""
        at = self._seconds(stream.position)
        print_json({"event": "gap", "num_samples": gap.num_samples, "reason": gap.reason, "time_s": at})

    def end(self, stream: VerificationStream) -> None:
        """Print that this was all."""
        print_json({"event": "end"})

    def _seconds(self, samples: int) -> float:
        return round(samples / self.rate, 3)


class Lines(View):
    """A line for each final decision: what is shown where there is no terminal."""

    def start(self, stream: VerificationStream, source: str) -> None:
        """Print on standard error what is listened to."""
        super().start(stream, source)
        print_error(f"listening to {source} for {', '.join(stream.verifier.speakers)}; ctrl-C ends")

    def decided(self, decision: Decision) -> None:
        """Print a final decision."""
        if decision.final and not self.is_blip(decision):
            console().print(self.line(decision), soft_wrap=True)

    def lost(self, gap: Gap, stream: VerificationStream) -> None:
        """Print on standard error what was lost."""
        print_error(gap.reason)

    def line(self, decision: Decision) -> str:
        """A decision for a rich console: its times, the verdict, the speaker and why."""
        from rich.markup import escape

        times = f"{decision.start / self.rate:8.2f}-{decision.end / self.rate:.2f} s"
        return f"{times}  {verdict_text(decision)}  {escape(decision.speaker)}  {escape(shown(decision.reason))}"


class Screen(Lines):
    """A live display: level, speech, the running score against the threshold, the last decisions."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(console=console(), auto_refresh=False, transient=False)
        self._source = ""
        self._level = METER_FLOOR_DB
        self._running: Decision | None = None
        self._last: deque[str] = deque(maxlen=LAST_DECISIONS)
        self._shown = -math.inf

    def start(self, stream: VerificationStream, source: str) -> None:
        """Open the display."""
        View.start(self, stream, source)
        self._source = source
        self._live.start()

    def heard(self, chunk: NDArray[np.float32], stream: VerificationStream) -> None:
        """Move the meter, and redraw ten times a second at most."""
        from ..audio import level_dbfs

        self._level = max(level_dbfs(chunk), self._level - 1.0)
        now = time.monotonic()
        if now - self._shown >= REFRESH_S:
            self._shown = now
            self._draw(stream)

    def decided(self, decision: Decision) -> None:
        """Keep it for the next drawing."""
        self._running = None if decision.final else decision
        if decision.final and not self.is_blip(decision):
            self._last.append(self.line(decision))

    def lost(self, gap: Gap, stream: VerificationStream) -> None:
        """Show it among the decisions."""
        from rich.markup import escape

        self._last.append(f"[yellow]{escape(gap.reason)}[/]")
        self._draw(stream)

    def end(self, stream: VerificationStream) -> None:
        """Draw the last state and give the terminal back."""
        with contextlib.suppress(OSError):  # a terminal that went away
            self._draw(stream)
        self._live.stop()

    def _draw(self, stream: VerificationStream) -> None:
        self._live.update(self._picture(stream), refresh=True)

    def _picture(self, stream: VerificationStream) -> RenderableType:
        from rich.markup import escape
        from rich.text import Text

        clock = time.strftime("%H:%M:%S", time.gmtime(stream.position / self.rate))
        filled = round(BAR * min(1.0, max(0.0, 1.0 - self._level / METER_FLOOR_DB)))
        colour = "green" if stream.in_speech else "dim"
        lines = [
            f"[bold]{escape(shown(self._source))}[/]  {clock}  for {escape(', '.join(stream.verifier.speakers))}  "
            "[dim](ctrl-C ends)[/]",
            f"level  [{colour}]{'#' * filled}{'.' * (BAR - filled)}[/] {self._level:4.0f} dB  "
            f"[{colour}]{'speech' if stream.in_speech else 'silence'}[/]",
            "score  " + self._score(stream),
            "",
            *reversed(self._last),
        ]
        return Text.from_markup("\n".join(lines))

    def _score(self, stream: VerificationStream) -> str:
        from rich.markup import escape

        decision = self._running
        threshold = stream.threshold.llr
        if decision is None or decision.score is None:
            waiting = "listening" if decision is None else escape(decision.reason)
            return f"[dim]{waiting}; accepted from LLR {threshold:.1f} on[/]"
        # Eight nats to either side of the threshold, which stands in the middle.
        place = round(BAR / 2 + BAR / 2 * min(1.0, max(-1.0, (decision.score - threshold) / 8.0)))
        bar = ["-"] * (BAR + 1)
        bar[BAR // 2] = "|"
        bar[place] = "O"
        return f"{''.join(bar)} {decision.score:5.1f}  {verdict_text(decision)} {escape(decision.speaker)}"


class Audited(View):
    """A view whose decisions are counted in the profiles' audit trails too.

    The counts are written once a minute at most and when listening ends: a device's flash outlives its microphone.
    """

    def __init__(self, view: View, store: ProfileStore) -> None:
        self._view, self._store = view, store
        self._counts: Counter[tuple[str, Verdict]] = Counter()
        self._pending: Decision | None = None
        self._written = time.monotonic()

    def start(self, stream: VerificationStream, source: str) -> None:
        """Begin to count."""
        super().start(stream, source)
        self._view.start(stream, source)

    def heard(self, chunk: NDArray[np.float32], stream: VerificationStream) -> None:
        """Write what is due."""
        self._view.heard(chunk, stream)
        if self._counts and time.monotonic() - self._written >= AUDIT_EVERY_S:
            self._write()

    def decided(self, decision: Decision) -> None:
        """Count a final decision; a provisional accept counts where no final one follows."""
        self._view.decided(decision)
        accepted = decision.verdict.name == "ACCEPT"
        self._pending = decision if accepted and not decision.final else None
        if decision.final and not self.is_blip(decision):
            self._count(decision)

    def lost(self, gap: Gap, stream: VerificationStream) -> None:
        """Nothing to count."""
        self._view.lost(gap, stream)

    def end(self, stream: VerificationStream) -> None:
        """Write the rest."""
        self._view.end(stream)
        if self._pending is not None:
            self._count(self._pending)
        self._write()

    def _count(self, decision: Decision) -> None:
        if decision.speaker:
            self._counts[decision.speaker, decision.verdict] += 1

    def _write(self) -> None:
        counts, self._counts, self._written = self._counts, Counter(), time.monotonic()
        for (name, verdict), count in counts.items():
            if not note_verified(self._store, name, verdict, count):
                self._counts[name, verdict] += count  # for the next minute


def file_chunks(
    path: Path, rate: int, realtime: bool, channel: int | Literal["mix"] = "mix", max_duration_s: float = 7200.0
) -> Iterator[NDArray[np.float32]]:
    """A recording in chunks of 20 ms, as a microphone would give it, at once or as slowly as it was spoken."""
    from ..audio import read_audio
    from ..decoding import shown

    waveform, notes = read_audio(path, rate, channel=channel, max_duration_s=max_duration_s)
    for note in notes:
        print_error(f"{shown(path)}: {note}")
    step = round(CHUNK_S * rate)
    start = time.monotonic()  # the wall clock may jump
    for at in range(0, len(waveform), step):
        if realtime:
            time.sleep(max(0.0, start + (at + step) / rate - time.monotonic()))
        yield waveform[at : at + step]


def listen(chunks: Chunks, stream: VerificationStream, view: View, until_accept: bool = False) -> int:
    """Feed chunks to a stream and its decisions to a view, to the end of the chunks.

    Returns
    -------
    int
        0 if any utterance was accepted, 1 if some were judged and none accepted, 2 if none was judged.
    """
    from ..decision import Verdict
    from ..microphone import Gap

    accepted = rejected = False
    for item in chunks:
        if isinstance(item, Gap):
            view.lost(item, stream)
            decisions = stream.gap(item.num_samples)
        else:
            decisions = stream.process(item)
            view.heard(item, stream)
        for decision in decisions:
            view.decided(decision)
            accepted |= decision.verdict is Verdict.ACCEPT and (decision.final or until_accept)
            rejected |= decision.verdict is Verdict.REJECT and decision.final
        if accepted and until_accept:
            return EXIT_ACCEPT
    for decision in stream.flush():
        view.decided(decision)
        accepted |= decision.verdict is Verdict.ACCEPT
        rejected |= decision.verdict is Verdict.REJECT
    return EXIT_ACCEPT if accepted else EXIT_REJECT if rejected else EXIT_NO_DECISION


def open_stream(args: argparse.Namespace, encoder: Encoder, store: ProfileStore) -> VerificationStream:
    """The stream for the profiles and the detector that the command line names."""
    from ..stream import VerificationStream
    from ..vad import SileroDetector

    names = tuple(dict.fromkeys(args.names))
    if args.refuse_replays and len(names) > 1:
        raise EnrolmentError("--refuse-replays listens for one speaker, whose profile keeps what was heard; name one")
    verifier = store.verifier(
        names,
        encoder,
        args.far,
        extrapolate=args.extrapolate,
        heard_before=store.heard(names[0]) if args.refuse_replays else None,
    )
    detector = SileroDetector() if args.vad == "silero" else None
    session = verifier.session(renew=True) if args.session else None
    return VerificationStream(verifier, encoder.spec.sample_rate, detector=detector, session=session)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as a service manager sends it, ends listening as ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: the program around us minds its signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(args: argparse.Namespace) -> int:
    """Listen until the file's end, ctrl-C, or, where asked, the first accept; the exit status is `listen`'s."""
    from ..decoding import shown
    from ..microphone import Microphone

    if args.realtime and args.file is None:
        raise AudioError("--realtime goes with --file; a microphone is never faster than that")
    encoder = open_encoder(args)
    store = open_store(args)
    stream = open_stream(args, encoder, store)
    rate = encoder.spec.sample_rate
    view = Audited(Json(args.verbose) if args.json else Screen() if sys.stdout.isatty() else Lines(), store)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_terminated_as_interrupted())
        if args.file is None:
            microphone = stack.enter_context(Microphone(rate, args.device, retry=args.retry))
            chunks: Chunks = microphone
            source = microphone.name
        else:
            chunks = file_chunks(args.file, rate, args.realtime, args.channel, args.max_duration)
            source = shown(args.file)
        stack.callback(view.end, stream)
        view.start(stream, source)
        return listen(chunks, stream, view, args.until_accept)
