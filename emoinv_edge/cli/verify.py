"""``emoinv verify``: is this recording the enrolled speaker?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .options import add_command, add_far, add_json, add_model, add_store, note_verified, open_encoder, open_store
from .terminal import console, decision_fields, exit_status, one_in, print_error, print_json, verdict_text

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv verify``."""
    parser = add_command(
        subparsers,
        "verify",
        "Decide whether a recording is an enrolled speaker; exit status 0 accept, 1 reject, 2 no decision, 3 error.",
        "emoinv verify ana door.wav && unlock",
    )
    parser.add_argument("name", help="the enrolled speaker")
    parser.add_argument("file", type=Path, help="the recording (WAV, FLAC, OGG, MP3, ...)")
    add_far(parser)
    add_store(parser)
    add_model(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify one file and return the exit status of the decision."""
    from ..audio import read_audio
    from ..verifier import Verifier

    encoder = open_encoder(args)
    store = open_store(args)
    profile = store.get(args.name, model_fingerprint=encoder.fingerprint, audio=False)
    verifier = Verifier(encoder, profile, args.far, extrapolate=args.extrapolate)
    waveform, notes = read_audio(args.file, encoder.spec.sample_rate)
    start = time.perf_counter()
    decision = verifier.verify(waveform, encoder.spec.sample_rate)
    took_ms = 1000.0 * (time.perf_counter() - start)
    note_verified(store, profile.name, decision)
    note_verified(store, profile.name, decision)
    if args.json:
        fields = decision_fields(decision)
        print_json({**fields, "file": str(args.file), "notes": list(notes), "ms": round(took_ms, 1)})
        return exit_status(decision)
    for note in notes:
        print_error(f"{args.file}: {note}")
    line = f"{verdict_text(decision)}  {args.name}  {decision.reason}"
    if decision.score is not None and decision.quality is not None:
        marked = ", extrapolated" if decision.extrapolated else ""
        line += (
            f"  (threshold for {one_in(args.far)} impostors{marked}; "
            f"{decision.quality.net_speech_s:.1f} s of speech, {took_ms:.0f} ms)"
        )
    console().print(line, soft_wrap=True)
    return exit_status(decision)
