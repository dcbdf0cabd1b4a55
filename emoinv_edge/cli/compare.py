"""``emoinv compare``: are these two recordings one speaker?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_command, add_shared, open_encoder
from .recordings import add_audio, explained
from .terminal import console, decision_fields, exit_status, one_in, print_error, print_json, verdict_text

if TYPE_CHECKING:
    from ..decision import Decision

__all__ = ["add_parser", "run"]

ANSWERS = {"ACCEPT": "one speaker", "REJECT": "two speakers", "NO_DECISION": ""}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv compare``."""
    parser = add_command(
        subparsers,
        "compare",
        "Decide whether two recordings are of one speaker; exit status 0 one, 1 two, 2 no decision, 3 error.\n"
        "Nobody is enrolled and nothing is stored.",
        "emoinv compare -- monday.wav tuesday.wav",
    )
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, help="a recording (WAV, FLAC, OGG, MP3, ...); - is standard input")
    add_audio(parser)
    add_shared(parser, run, far=True, verbose=True)


def run(args: argparse.Namespace) -> int:
    """Compare two files and return the exit status of the decision."""
    from ..audio import read_blocks
    from ..comparison import compare_heard
    from ..decoding import shown
    from ..utterance import hear_blocks

    encoder = open_encoder(args)
    heard = []
    notes: list[list[str]] = [[], []]
    start = time.perf_counter()
    for path, found in zip((args.first, args.second), notes, strict=True):
        options = {"channel": args.channel, "max_duration_s": args.max_duration, "notes": found}
        heard.append(hear_blocks(encoder, read_blocks(path, encoder.spec.sample_rate, **options)))
    decision = compare_heard(encoder, *heard, target_far=args.far, extrapolate=args.extrapolate)
    decision = explained(decision, [note for found in notes for note in found])
    took_ms = 1000.0 * (time.perf_counter() - start)
    files = [shown(path) for path in (args.first, args.second)]
    if args.json:
        same = None if decision.score is None else decision.accepted
        fields = {**decision_fields(decision, args.verbose), "same_speaker": same, "files": files, "notes": notes}
        del fields["speaker"], fields["start"], fields["end"]
        print_json({**fields, "ms": round(took_ms, 1)})
    else:
        for file, found in zip(files, notes, strict=True):
            for note in found:
                print_error(f"{file}: {note}")
        print_answer(args, decision, took_ms)
    return exit_status(decision)


def print_answer(args: argparse.Namespace, decision: Decision, took_ms: float) -> None:
    """The decision in one line."""
    from rich.markup import escape

    answer, line = ANSWERS[decision.verdict.name], decision.reason
    if decision.score is not None:
        marked = ", extrapolated" if decision.extrapolated else ""
        line += f"  (threshold for {one_in(args.far)} pairs of two speakers{marked}; {took_ms:.0f} ms)"
    console().print(f"{verdict_text(decision)}  {escape('  '.join(filter(None, (answer, line))))}", soft_wrap=True)
