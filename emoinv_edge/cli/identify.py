"""``emoinv identify``: which of the enrolled speakers is this, or each of several recordings, if any?"""

from __future__ import annotations

import argparse

from ..errors import UnknownSpeakerError
from .options import add_command, add_shared, note_verified, open_encoder, open_store
from .recordings import Table, add_audio, add_csv, add_recordings, answers, explained, print_decision
from .terminal import EXIT_ACCEPT, EXIT_ERROR, exit_status

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv identify``."""
    parser = add_command(
        subparsers,
        "identify",
        "Decide which enrolled speaker a recording is, or nobody; exit status 0 somebody, 1 nobody, 2 no decision.\n"
        "Several recordings are decided one by one; the exit status is then the highest of theirs.",
        "emoinv identify -- door.wav",
    )
    add_recordings(parser)
    parser.add_argument("--among", nargs="+", metavar="NAME", help="only these speakers (default: all)")
    parser.add_argument("--all", action="store_true", help="print the score of every speaker too")
    add_audio(parser, each=True)
    add_csv(parser)
    add_shared(parser, run, far=True, store=True, verbose=True)


def run(args: argparse.Namespace) -> int:
    """Compare each recording with every profile and return the highest exit status."""
    encoder = open_encoder(args)
    store = open_store(args)
    if not store.names():
        raise UnknownSpeakerError(f"no profile to compare with in {store.path}; enrol a speaker first (emoinv enroll)")
    verifier = store.verifier(args.among, encoder, args.far, extrapolate=args.extrapolate)
    status = EXIT_ACCEPT
    with Table(args.csv, verifier.speakers if args.all else ()) as table:
        heard = answers(args, encoder.spec.sample_rate, table, lambda each: verifier.examine_blocks(each.blocks))
        for recording, examined, took_ms in heard:
            if examined is None:
                status = EXIT_ERROR
                continue
            decision = explained(examined.decision, recording.notes)
            who = decision.speaker if decision.accepted else None
            scores = verifier.scores_of(examined.embedding, decision.quality) if args.all else {}
            more = {"identified": who, **({"scores": scores} if args.all else {})}
            print_decision(args, decision, who or "nobody", recording, took_ms, more)
            if not args.json:
                for name, score in scores.items():
                    print(f"    {score:7.2f}  {name}")
            if decision.accepted:
                note_verified(store, decision.speaker, decision.verdict)
            table.add(recording, decision, scores)
            status = max(status, exit_status(decision))
    return status
