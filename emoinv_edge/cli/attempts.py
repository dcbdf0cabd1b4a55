"""``emoinv verify --session``: several recordings of one person as one decision."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from ..errors import CalibrationError
from .options import note_verified, open_encoder, open_store
from .terminal import console, decision_fields, exit_status, one_in, print_error, print_json, verdict_text

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
    from ..device_calibration import refined_calibration
    from ..verifier import Verifier

    if args.adapt:
        raise CalibrationError("--adapt learns from one clear utterance at a time; leave --session out")
    if len(args.files) > MAX_ATTEMPTS:
        raise CalibrationError(f"a session has at most {MAX_ATTEMPTS} attempts, got {len(args.files)} recordings")
    encoder = open_encoder(args)
    store = open_store(args)
    profile = store.get(args.name, model_fingerprint=encoder.fingerprint, audio=False)
    verifier = Verifier(
        encoder,
        profile,
        args.far,
        extrapolate=args.extrapolate,
        calibration=refined_calibration(encoder, store.path),
        heard_before=store.heard(profile.name) if args.refuse_replays else None,
    )
    session = verifier.session(max(2, len(args.files)))
    answers = []
    start = time.perf_counter()
    for file in args.files:
        waveform, notes = read_audio(file, encoder.spec.sample_rate)
        answers.append((str(file), notes, session.add(waveform, encoder.spec.sample_rate)))
    took_ms = 1000.0 * (time.perf_counter() - start)
    decision = session.decision or answers[-1][2]
    note_verified(store, profile.name, decision.verdict)
    if args.json:
        recordings = [{"file": file, "notes": list(notes), **_answer(each)} for file, notes, each in answers]
        more = {"attempts": session.attempts, "recordings": recordings, "ms": round(took_ms, 1)}
        print_json({**decision_fields(decision), **more})
        return exit_status(decision)
    for file, notes, each in answers:
        for note in (*notes, *([each.reason] if each.score is None else [])):
            print_error(f"{file}: {note}")
    from rich.markup import escape

    marked = ", extrapolated" if decision.extrapolated else ""
    line = f"{profile.name}  {decision.reason}"
    if decision.score is not None:
        line += f"  (for {one_in(args.far)} impostors over the whole session{marked}; {took_ms:.0f} ms)"
    console().print(f"{verdict_text(decision)}  {escape(line)}", soft_wrap=True)
    return exit_status(decision)


def _answer(decision: Decision) -> dict[str, object]:
    """What one recording brought the session to."""
    return {"verdict": decision.verdict.name.lower(), "score": decision.score, "reason": decision.reason}
