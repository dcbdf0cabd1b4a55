"""``emoinv verify``: is this recording the enrolled speaker?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..errors import CalibrationError
from .options import add_command, add_far, add_json, add_model, add_store, note_verified, open_encoder, open_store
from .terminal import exit_status, print_decision, print_error

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
    parser.add_argument(
        "--adapt", action="store_true", help="add a clear accept to the profile (undo: emoinv profiles rollback)"
    )
    parser.add_argument(
        "--refuse-replays",
        action="store_true",
        help="no decision on a played-back recording of an earlier attempt; keeps sealed fingerprints of the attempts",
    )
    add_far(parser)
    add_store(parser)
    add_model(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify one file and return the exit status of the decision."""
    from ..audio import read_audio
    from ..device_calibration import refined_calibration

    if args.adapt and args.extrapolate:
        raise CalibrationError("--adapt needs a supported false-accept rate; leave --extrapolate out")
    encoder = open_encoder(args)
    store = open_store(args)
    profile = store.get(args.name, model_fingerprint=encoder.fingerprint, audio=False)
    calibration = refined_calibration(encoder, store.path)
    heard_before = store.heard(profile.name) if args.refuse_replays else None
    waveform, notes = read_audio(args.file, encoder.spec.sample_rate)
    start = time.perf_counter()
    adapted = False
    if args.adapt:
        from ..adaptation import Adapter

        adapter = Adapter(encoder, store, profile.name, args.far, calibration=calibration, heard_before=heard_before)
        decision, adapted = adapter.verify(waveform, encoder.spec.sample_rate)
    else:
        from ..verifier import Verifier

        verifier = Verifier(
            encoder,
            profile,
            args.far,
            extrapolate=args.extrapolate,
            calibration=calibration,
            heard_before=heard_before,
        )
        decision = verifier.verify(waveform, encoder.spec.sample_rate)
    took_ms = 1000.0 * (time.perf_counter() - start)
    note_verified(store, profile.name, decision.verdict)
    print_decision(args, decision, profile.name, notes, took_ms, {"adapted": adapted})
    if adapted and not args.json:
        print_error(f"this recording was added to the profile; undo: emoinv profiles rollback {profile.name}")
    return exit_status(decision)
