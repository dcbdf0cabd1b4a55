"""``emoinv verify --session``: several recordings of one person as one decision."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from ..errors import CalibrationError
from .options import note_verified, open_encoder, open_store
from .terminal import console, decision_fields, exit_status, one_in, print_error, print_json, shown, verdict_text

if TYPE_CHECKING:
    from ..decision import Decision

__all__ = ["add_session", "run_session"]


def add_session(parser: argparse.ArgumentParser) -> None:
    """Add ``--session``."""
    parser.add_argument("--session", action="store_true", help="decide on attempts together, at --far over all of them")


def run_session(args: argparse.Namespace) -> int:
    """Verify two or three files as one session and return the exit status of its decision."""
    from ..audio import read_audio
    from ..calibration import MAX_ATTEMPTS

    if args.adapt:
        raise CalibrationError("--adapt learns from one clear utterance at a time; leave --session out")
    if args.channel == "each" or args.csv is not None:
        raise CalibrationError("--session gives one decision on one person; leave --channel each and --csv out")
    if len(args.files) > MAX_ATTEMPTS:
        raise CalibrationError(f"a session has at most {MAX_ATTEMPTS} attempts, got {len(args.files)} recordings")
    encoder = open_encoder(args)
    store = open_store(args)
    name = store.get(args.name, model_fingerprint=encoder.fingerprint, audio=False).name
    heard_before = store.heard(name) if args.refuse_replays else None
    verifier = store.verifier(name, encoder, args.far, extrapolate=args.extrapolate, heard_before=heard_before)
    session = verifier.session(max(2, len(args.files)))
    answers = []
    start = time.perf_counter()
    for file in args.files:
        rate, most = encoder.spec.sample_rate, args.max_duration
        waveform, notes = read_audio(file, rate, channel=args.channel, max_duration_s=most)
        answers.append((str(file), notes, session.add(waveform, rate)))
    took_ms = 1000.0 * (time.perf_counter() - start)
    decision = session.decision or answers[-1][2]
    if args.json:
        recordings = [{"file": file, "notes": list(notes), **_answer(each)} for file, notes, each in answers]
        more = {"attempts": session.attempts, "recordings": recordings, "ms": round(took_ms, 1)}
        print_json({**decision_fields(decision, args.verbose), **more})
        note_verified(store, name, decision.verdict)
        return exit_status(decision)
    for file, notes, each in answers:
        for note in (*notes, *([each.reason] if each.score is None else [])):
            print_error(f"{file}: {note}")
    from rich.markup import escape

    marked = ", extrapolated" if decision.extrapolated else ""
    line = f"{name}  {decision.reason}"
    if decision.score is not None:
        line += f"  (for {one_in(args.far)} impostors over the whole session{marked}; {took_ms:.0f} ms)"
    console().print(f"{verdict_text(decision)}  {escape(shown(line))}", soft_wrap=True)
    note_verified(store, name, decision.verdict)
    return exit_status(decision)


def _answer(decision: Decision) -> dict[str, object]:
    """What one recording brought the session to."""
    return {"verdict": decision.verdict.name.lower(), "score": decision.score, "reason": decision.reason}
