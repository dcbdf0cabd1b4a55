"""``emoinv identify``: which of the enrolled speakers is this, if any?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..errors import ModelMismatchError, ProfileExpiredError, UnknownSpeakerError
from .options import (
    add_command,
    add_far,
    add_json,
    add_model,
    add_store,
    note_verified,
    open_encoder,
    open_store,
)
from .terminal import exit_status, print_decision, print_error

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv identify``."""
    parser = add_command(
        subparsers,
        "identify",
        "Decide which enrolled speaker a recording is, or nobody; exit status 0 somebody, 1 nobody, 2 no decision.",
        "emoinv identify door.wav",
    )
    parser.add_argument("file", type=Path, help="the recording (WAV, FLAC, OGG, MP3, ...)")
    parser.add_argument("--among", nargs="+", metavar="NAME", help="only these speakers (default: all)")
    add_far(parser)
    add_store(parser)
    add_model(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare one file with every profile and return the exit status of the decision."""
    from ..audio import read_audio
    from ..device_calibration import refined_calibration
    from ..verifier import Verifier

    encoder = open_encoder(args)
    store = open_store(args)
    profiles = []
    for name in args.among or store.names():
        try:
            profiles.append(store.get(name, model_fingerprint=encoder.fingerprint, audio=False))
        except (ModelMismatchError, ProfileExpiredError) as error:
            if args.among:
                raise
            print_error(f"left out: {error}")
    if not profiles:
        raise UnknownSpeakerError(f"no profile to compare with in {store.path}; enrol a speaker first (emoinv enroll)")
    calibration = refined_calibration(encoder, store.path)
    verifier = Verifier(encoder, profiles, args.far, extrapolate=args.extrapolate, calibration=calibration)
    waveform, notes = read_audio(args.file, encoder.spec.sample_rate)
    start = time.perf_counter()
    decision = verifier.verify(waveform, encoder.spec.sample_rate)
    took_ms = 1000.0 * (time.perf_counter() - start)
    if decision.accepted:
        note_verified(store, decision.speaker, decision.verdict)
    who = decision.speaker if decision.accepted else "nobody"
    print_decision(args, decision, who, notes, took_ms, {"identified": decision.speaker if decision.accepted else None})
    return exit_status(decision)
