"""``emoinv enroll``: make a speaker's profile from recordings."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AudioError, EnrolmentError, StoreError
from .options import add_command, add_json, add_model, add_store, open_encoder, open_store
from .terminal import EXIT_ACCEPT, console, print_json, track

if TYPE_CHECKING:
    from ..encoder import Encoder
    from ..enrolment import Enroller
    from ..profiles import Profile
    from ..store import ProfileStore

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv enroll``."""
    parser = add_command(
        subparsers,
        "enroll",
        "Make a speaker's profile from recordings of one person; more moods and rooms make a better profile.",
        "emoinv enroll ana calm.wav excited.wav soft.wav",
    )
    parser.add_argument("name", help="what the speaker is called")
    parser.add_argument("files", nargs="+", type=Path, metavar="file", help="recordings (WAV, FLAC, OGG, MP3, ...)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--add", action="store_true", help="add the recordings to the profile that exists")
    existing.add_argument("--replace", action="store_true", help="replace the profile that exists")
    parser.add_argument("--consent", default="", metavar="TEXT", help="what the speaker agreed to, and how")
    parser.add_argument(
        "--expires", type=parse_days, metavar="DAYS", help="refuse the profile after so many days (default: never)"
    )
    parser.add_argument(
        "--keep-audio", action="store_true", help="keep the speech too, so that another model can enrol it again"
    )
    add_store(parser)
    add_model(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def parse_days(text: str) -> float:
    """A number of days above 0."""
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0.0 < days <= 36525.0:
        raise argparse.ArgumentTypeError(f"expected days above 0, at most a hundred years, got {text!r}")
    return days


def existing_profile(store: ProfileStore, encoder: Encoder, args: argparse.Namespace) -> Profile | None:
    """The profile to add to, or None; an existing one is never touched without ``--add`` or ``--replace``."""
    if args.add:
        return store.get(args.name, model_fingerprint=encoder.fingerprint)
    if args.name in store.names() and not args.replace:
        raise StoreError(
            f"{args.name!r} is enrolled already; pass --add to add recordings to the profile, or --replace"
        )
    return None


def finished_profile(enroller: Enroller, args: argparse.Namespace) -> Profile:
    """The profile with the consent note and the expiry of the command line."""
    profile = enroller.profile(args.name)
    changes: dict[str, Any] = {}
    if args.consent:
        changes["consent"] = args.consent
    if args.expires is not None:
        now = datetime.datetime.now(datetime.timezone.utc)
        changes["expires"] = now + datetime.timedelta(days=args.expires)
    return dataclasses.replace(profile, **changes)


def run(args: argparse.Namespace) -> int:
    """Enrol from files; 0 when the profile was stored, 3 when not."""
    from ..audio import read_audio
    from ..enrolment import Enroller

    encoder = open_encoder(args)
    store = open_store(args)
    enroller = Enroller(encoder, profile=existing_profile(store, encoder, args), keep_audio=args.keep_audio)
    before = enroller.seconds
    utterances: list[dict[str, Any]] = []
    for path in track(args.files, f"enrolling {args.name}", show=not args.json):
        try:
            waveform, notes = read_audio(path, encoder.spec.sample_rate)
        except AudioError as error:
            answer = {"accepted": False, "reason": "unreadable", "message": str(error), "seconds": enroller.seconds}
            notes = ()
        else:
            feedback = enroller.add(waveform, encoder.spec.sample_rate)
            answer = dataclasses.asdict(feedback)
        utterances.append({"file": str(path), "notes": list(notes), **answer})
        if not args.json:
            mark = "[green]taken[/]  " if answer["accepted"] else "[yellow]refused[/]"
            console().print(f"{mark} ", end="")
            console().print("; ".join([f"{path}: {answer['message']}", *notes]), markup=False, soft_wrap=True)
    if enroller.seconds == before:
        raise EnrolmentError(
            "no recording was taken; see each one's reason above, and record 2 to 10 s of one person's speech"
            if not args.json
            else "no recording was taken: " + "; ".join(f"{each['file']}: {each['message']}" for each in utterances)
        )
    profile = finished_profile(enroller, args)
    store.put(profile)
    accepted = sum(bool(each["accepted"]) for each in utterances)
    if args.json:
        print_json(
            {
                "name": profile.name,
                "model": encoder.spec.name,
                "model_fingerprint": encoder.fingerprint,
                "store": str(store.path),
                "exemplars": len(profile.exemplars),
                "seconds": enroller.seconds,
                "progress": enroller.progress,
                "prompt": enroller.prompt,
                "expires": profile.expires.isoformat() if profile.expires else None,
                "utterances": utterances,
            }
        )
        return EXIT_ACCEPT
    console().print(
        f"{profile.name!r} is enrolled: {len(profile.exemplars)} recordings, {enroller.seconds:.1f} s of speech, "
        f"{enroller.progress:.0%} of what is advised; in {store.path}",
        markup=False,
        soft_wrap=True,
    )
    if enroller.progress < 1.0 or accepted < len(args.files):
        console().print(f"To make it better: {enroller.prompt} (emoinv enroll {args.name} --add FILE)", markup=False)
    return EXIT_ACCEPT
