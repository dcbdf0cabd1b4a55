"""``emoinv enroll``: make a speaker's profile from recordings, or guided at the microphone."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AudioError, EnrolmentError, StoreError
from .coverage import add_language, coverage_fields, coverage_lines
from .options import add_command, add_shared, open_encoder, open_store, parse_device, parse_name, positive
from .recordings import add_audio, open_recording, waveform_of
from .terminal import EXIT_ACCEPT, EXIT_NO_DECISION, console, print_json, quality_fields, track

if TYPE_CHECKING:
    from rich.console import Console

    from ..encoder import Encoder
    from ..enrolment import Enroller, EnrolmentFeedback
    from ..profiles import Profile
    from ..store import ProfileStore

__all__ = ["add_parser", "run"]

METER_FLOOR_DB = -60.0
NOT_GIVEN = ("unreadable", "gap")  # reasons of recordings that never came to the enroller
MOST_DAYS = 36525  # a hundred years


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv enroll``."""
    parser = add_command(
        subparsers,
        "enroll",
        "Make a speaker's profile from recordings of one person, or at the microphone; more emotions make it better.\n"
        "Exit status 0: stored; 2: stored, but not every recording was taken; 3: nothing was stored.",
        "emoinv enroll ana calm.wav excited.wav soft.wav\n  emoinv enroll ana --mic",
    )
    parser.add_argument("name", type=parse_name, help="what the speaker is called")
    files = parser.add_argument(
        "files", nargs="+", default=[], type=Path, metavar="file", help="recordings (WAV, FLAC, OGG, MP3, ...)"
    )
    files.required = False  # nargs="*" would not find files that stand behind an option
    add_audio(parser)
    parser.add_argument("--mic", action="store_true", help="record here, with prompts, until there is enough")
    parser.add_argument(
        "--device", type=parse_device, metavar="NAME|INDEX", help="the microphone (`emoinv doctor` lists them)"
    )
    add_language(parser)
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--add", action="store_true", help="add the recordings to the profile that exists")
    existing.add_argument("--replace", action="store_true", help="replace the profile that exists")
    parser.add_argument(
        "--sure", action="store_true", help="take recordings that sound like somebody else too: you know who spoke"
    )
    parser.add_argument("--consent", default="", metavar="TEXT", help="what the speaker agreed to, and how")
    parser.add_argument(
        "--expires",
        type=positive("days", MOST_DAYS),
        metavar="DAYS",
        help="refuse the profile after so many days (default: never)",
    )
    parser.add_argument(
        "--keep-audio", action="store_true", help="keep the speech too, so that another model can enrol it again"
    )
    parser.add_argument(
        "--refuse-replays",
        action="store_true",
        help="keep sealed fingerprints of these recordings too, so that `verify --refuse-replays` knows them",
    )
    add_shared(parser, run, store=True, verbose=True)


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


def from_files(args: argparse.Namespace, enroller: Enroller, rate: int, out: Console) -> Iterator[dict[str, Any]]:
    """Enrol from the files of the command line; the answer for each."""
    for path in track(args.files, f"enrolling {args.name}", show=not args.json):
        for recording in open_recording(path, rate, args.channel, args.max_duration):
            file = recording.file
            try:
                waveform = waveform_of(recording)
            except AudioError as error:
                message = str(error).removeprefix(f"{file}: ")
                yield {"file": file, "notes": [], "accepted": False, "reason": "unreadable", "message": message}
            else:
                yield {"file": file, "notes": recording.notes, **answer(enroller.add(waveform, rate), args.verbose)}


def answer(feedback: EnrolmentFeedback, verbose: bool) -> dict[str, Any]:
    """The feedback on one utterance as a JSON object."""
    return {**dataclasses.asdict(feedback), "quality": quality_fields(feedback.quality, verbose)}


def from_microphone(args: argparse.Namespace, enroller: Enroller, rate: int, out: Console) -> Iterator[dict[str, Any]]:
    """Enrol at the microphone, with prompts and a level meter, until there is enough; the answer for each take.

    Whatever else is printed meanwhile must go to `out` too, or it runs into the meter.
    """
    from rich.live import Live
    from rich.markup import escape

    from ..enrolment import utterances
    from ..microphone import Gap, Microphone

    with Microphone(rate, args.device) as microphone, Live(console=out, transient=True) as live:

        def show(level: float, speech: bool) -> None:
            filled = round(30.0 * max(0.0, 1.0 - level / METER_FLOOR_DB))
            live.update(
                f"[bold]{escape(enroller.prompt)}[/]\n"
                f"[{'green' if speech else 'dim'}]{'#' * filled}{'.' * (30 - filled)}[/] {level:4.0f} dB  "
                f"{'speech' if speech else '      '}  {enroller.seconds:.1f} s, {enroller.progress:.0%}  (ctrl-C ends)"
            )

        for number, take in enumerate(utterances(microphone, rate, show), start=1):
            name = f"take {number}"
            if isinstance(take, Gap):
                yield {"file": name, "notes": [], "accepted": False, "reason": "gap", "message": take.reason}
                continue
            yield {"file": name, "notes": [], **answer(enroller.add(take, rate), args.verbose)}
            if enroller.progress >= 1.0:
                return


def reconsidered(answers: Iterable[dict[str, Any]], enroller: Enroller) -> Iterator[dict[str, Any]]:
    """The answers that later recordings changed, as they stand now: who the speaker is shows only among several."""
    given = [each for each in answers if each["reason"] not in NOT_GIVEN]
    doubts = {doubt.number: doubt for doubt in enroller.doubts}
    for number, each in enumerate(given):
        if each["reason"] == "accepted" and number not in enroller.taken:
            llr = f" (LLR {doubts[number].llr:.1f}, at least {doubts[number].least:.1f})" if number in doubts else ""
            message = f"Left out after all: it does not sound like the speaker of the others{llr}."
            each |= {"accepted": False, "reason": "other_speaker", "message": message}
            yield each
        elif each["reason"] == "other_speaker" and number in enroller.taken:
            each |= {"accepted": True, "reason": "accepted", "message": "Taken after all: others agree with it."}
            yield each


def run(args: argparse.Namespace) -> int:
    """Enrol from files or at the microphone; 0 when the profile was stored, 2 without some of the files, 3 when not."""
    from ..enrolment import Enroller
    from ..heard import HeardBefore

    if args.mic == bool(args.files):
        raise EnrolmentError("name the recordings to enrol, or --mic to record here; see `emoinv enroll --help`")
    encoder = open_encoder(args)
    store = open_store(args)
    existing = existing_profile(store, encoder, args)
    heard = HeardBefore() if args.refuse_replays else None
    calibration = store.calibration(encoder)
    enroller = Enroller(
        encoder,
        calibration=calibration,
        profile=existing,
        keep_audio=args.keep_audio,
        heard_before=heard,
        sure=args.sure,
        language=args.lang,
    )
    answers = []
    out = console(stderr=args.json)
    source = from_microphone if args.mic else from_files
    for each in source(args, enroller, encoder.spec.sample_rate, out):
        answers.append(each)
        if not args.json:
            print_answer(each, out)
    for each in reconsidered(answers, enroller):
        if not args.json:
            print_answer(each, out)
    if not any(each["accepted"] for each in answers):
        reasons = "; ".join(f"{each['file']}: {each['message']}" for each in answers)
        raise EnrolmentError(f"nothing was taken. {reasons}" if args.json else "nothing was taken; see why above")
    profile = finished_profile(enroller, args)
    if existing is None:
        store.put(profile, replace=args.replace)
    else:  # on what is there by now: adaptation may have gone on while these were recorded
        profile = store.extend(
            existing,
            enroller.added,
            expires=profile.expires,
            consent=profile.consent,
        )
    if heard is not None:
        store.heard(profile.name).extend(heard)
    coverage = enroller.coverage
    refused = 0 if args.mic else sum(not each["accepted"] for each in answers)
    status = EXIT_NO_DECISION if refused else EXIT_ACCEPT
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
                "coverage": None if coverage is None else coverage_fields(coverage, args.lang),
                "expires": profile.expires.isoformat() if profile.expires else None,
                "utterances": answers,
            }
        )
        return status
    out.print(
        f"{profile.name!r} is enrolled: {len(profile.exemplars)} recordings, {enroller.seconds:.1f} s of speech, "
        f"{enroller.progress:.0%} of what is advised; in {store.path}",
        markup=False,
        soft_wrap=True,
    )
    if refused:
        out.print(f"{refused} of {len(answers)} recordings were left out; see why above.")
    if coverage is not None:
        for line in coverage_lines(coverage, args.name, args.lang):
            out.print(line, markup=False, soft_wrap=True)
    return status


def print_answer(each: dict[str, Any], out: Console) -> None:
    """One line on one recording."""
    from rich.text import Text

    mark = ("taken   ", "green") if each["accepted"] else ("refused ", "yellow")
    text = "; ".join([f"{each['file']}: {each['message']}", *each["notes"]])
    out.print(Text.assemble(mark, text), soft_wrap=True)
