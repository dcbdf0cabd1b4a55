"""``emoinv verify``: is this recording, or each of several, the enrolled speaker?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import CalibrationError
from .options import add_command, add_session, add_shared, note_verified, open_encoder, open_store
from .recordings import (
    Recording,
    Table,
    add_audio,
    add_csv,
    add_recordings,
    answers,
    explained,
    print_decision,
    waveform_of,
)
from .terminal import EXIT_ACCEPT, EXIT_ERROR, exit_status, print_error

if TYPE_CHECKING:
    from ..decision import Decision

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv verify``."""
    parser = add_command(
        subparsers,
        "verify",
        "Decide whether a recording is an enrolled speaker; exit status 0 accept, 1 reject, 2 no decision, 3 error.\n"
        "Several recordings are decided one by one; the exit status is then the highest of theirs.",
        "emoinv verify -- ana door.wav && unlock\n  emoinv verify --csv scores.csv -- ana *.wav\n"
        "  emoinv verify --session -- ana first.wav second.wav",
    )
    parser.add_argument("name", help="the enrolled speaker")
    add_recordings(parser)
    add_session(parser)
    parser.add_argument(
        "--adapt", action="store_true", help="add a clear accept to the profile (undo: emoinv profiles rollback)"
    )
    parser.add_argument(
        "--refuse-replays",
        action="store_true",
        help="no decision on a played-back recording of an earlier attempt; keeps sealed fingerprints of the attempts",
    )
    add_audio(parser, each=True)
    add_csv(parser)
    add_shared(parser, run, far=True, store=True, verbose=True)


def run(args: argparse.Namespace) -> int:
    """Verify each recording and return the highest exit status, or that of the session on them together."""
    from ..calibration import MAX_ATTEMPTS

    if args.session and (args.adapt or args.channel == "each" or len(args.files) > MAX_ATTEMPTS):
        raise CalibrationError(
            f"--session decides on at most {MAX_ATTEMPTS} recordings of one person and learns nothing; leave "
            "it, or --adapt and --channel each, out"
        )
    if args.adapt and args.extrapolate:
        raise CalibrationError("--adapt needs a supported false-accept rate; leave --extrapolate out")
    encoder = open_encoder(args)
    store = open_store(args)
    name = store.get(args.name, model_fingerprint=encoder.fingerprint, audio=False).name
    heard_before = store.heard(name) if args.refuse_replays else None
    session = None
    if args.adapt:
        from ..adaptation import Adapter

        adapter = Adapter(encoder, store, name, args.far, heard_before=heard_before)

        def decide(recording: Recording) -> tuple[Decision, bool]:
            outcome = adapter.verify(waveform_of(recording), encoder.spec.sample_rate)
            return outcome.decision, outcome.added
    else:
        verifier = store.verifier(name, encoder, args.far, extrapolate=args.extrapolate, heard_before=heard_before)
        session = verifier.session(max(2, len(args.files))) if args.session else None

        def decide(recording: Recording) -> tuple[Decision, bool]:
            if session is not None:
                return session.add(waveform_of(recording), encoder.spec.sample_rate), False
            return verifier.examine_blocks(recording.blocks).decision, False

    status = EXIT_ACCEPT
    with Table(args.csv) as table:
        for recording, found, took_ms in answers(args, encoder.spec.sample_rate, table, decide):
            if found is None:
                status = EXIT_ERROR
                continue
            decision, adapted = explained(found[0], recording.notes), found[1]
            print_decision(args, decision, name, recording, took_ms, {"adapted": adapted})
            if adapted and not args.json:
                print_error(f"this recording was added to the profile; undo: emoinv profiles rollback {name}")
            if session is None:
                note_verified(store, name, decision.verdict)
            table.add(recording, decision)
            if session is None or session.decision is None:
                status = max(status, exit_status(decision))
    if session is not None and session.decision is not None:
        note_verified(store, name, session.decision.verdict)
        return status if status == EXIT_ERROR else exit_status(session.decision)
    return status
