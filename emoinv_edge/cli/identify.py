"""``emoinv identify``: which of the enrolled speakers is this, if any?"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..errors import UnknownSpeakerError
from .options import (
    add_command,
    add_far,
    add_json,
    add_model,
    add_store,
    add_verbose,
    note_verified,
    open_encoder,
    open_store,
)
from .terminal import exit_status, print_decision

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv identify``."""
    parser = add_command(
        subparsers,
        "identify",
        "Decide which enrolled speaker a recording is, or nobody; exit status 0 somebody, 1 nobody, 2 no decision.",
        "emoinv identify -- door.wav",
    )
    parser.add_argument("file", type=Path, help="the recording (WAV, FLAC, OGG, MP3, ...)")
    parser.add_argument("--among", nargs="+", metavar="NAME", help="only these speakers (default: all)")
    add_far(parser)
    add_store(parser)
    add_model(parser)
    add_json(parser)
    add_verbose(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare one file with every profile and return the exit status of the decision."""
    from ..audio import read_audio

    encoder = open_encoder(args)
    store = open_store(args)
    if not store.names():
        raise UnknownSpeakerError(f"no profile to compare with in {store.path}; enrol a speaker first (emoinv enroll)")
    verifier = store.verifier(args.among, encoder, args.far, extrapolate=args.extrapolate)
    waveform, notes = read_audio(args.file, encoder.spec.sample_rate)
    start = time.perf_counter()
    decision = verifier.verify(waveform, encoder.spec.sample_rate)
    took_ms = 1000.0 * (time.perf_counter() - start)
    who = decision.speaker if decision.accepted else "nobody"
    print_decision(args, decision, who, notes, took_ms, {"identified": decision.speaker if decision.accepted else None})
    if decision.accepted:
        note_verified(store, decision.speaker, decision.verdict)
    return exit_status(decision)
