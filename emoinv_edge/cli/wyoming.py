"""``emoinv wyoming``: who spoke, for a voice assistant that speaks the Wyoming protocol."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import EmoinvError, EnrolmentError, StoreError
from .options import add_command, add_far, add_model, add_store, note_verified, open_encoder, open_store, parse_name
from .terminal import EXIT_ACCEPT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..decision import Decision
    from ..encoder import Encoder
    from ..store import ProfileStore

__all__ = ["add_parser", "run"]

URI = "tcp://127.0.0.1:10350"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv wyoming``."""
    parser = add_command(
        subparsers,
        "wyoming",
        "Stand between a voice assistant and its speech-to-text, and name who spoke (Wyoming protocol).",
        "emoinv wyoming --upstream tcp://127.0.0.1:10300 --require ana,bob\n  emoinv wyoming --enrol ana",
    )
    parser.add_argument(
        "--upstream", metavar="URI", help="the speech-to-text behind it (default: answer with the name)"
    )
    parser.add_argument("--uri", default=URI, metavar="URI", help=f"where to listen (default: {URI})")
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument(
        "--require", type=parse_names, metavar="NAME,...", help="pass a transcript only if one of these spoke"
    )
    answer.add_argument(
        "--annotate", action="store_true", help="put the speaker into each transcript's context (the default)"
    )
    parser.add_argument("--prefix", action="store_true", help="put the speaker's name in front of the text too")
    parser.add_argument(
        "--enrol", type=parse_name, metavar="NAME", help="enrol NAME from the next utterances of the satellite first"
    )
    parser.add_argument(
        "--consent", default="", metavar="TEXT", help="with --enrol: what the speaker agreed to, and how"
    )
    add_far(parser)
    add_store(parser)
    add_model(parser)
    parser.set_defaults(run=run)


def parse_names(text: str) -> tuple[str, ...]:
    """The names of profiles, with commas between them."""
    return tuple(parse_name(name.strip()) for name in text.split(","))


class StoredSpeakers:
    """Decides by the profiles that are in the store at the moment, so that who was removed is not accepted."""

    def __init__(self, encoder: Encoder, store: ProfileStore, args: argparse.Namespace) -> None:
        self._encoder = encoder
        self._store = store
        self._args = args

    def __call__(self, waveform: NDArray[Any], sample_rate: int) -> Decision:
        """The decision on one utterance; counted in the audit trail of the profile."""
        from ..verifier import Verifier

        profiles, _ = self._store.usable(self._encoder.fingerprint, self._args.require)
        verifier = Verifier(
            self._encoder, profiles, self._args.far, extrapolate=self._args.extrapolate, store=self._store
        )
        decision = verifier.verify(waveform, sample_rate)
        if decision.speaker:
            note_verified(self._store, decision.speaker, decision.verdict)
        return decision


class StoredEnrolment:
    """Enrols one speaker from the utterances of a satellite, and stores the profile when there is enough."""

    def __init__(self, encoder: Encoder, store: ProfileStore, name: str, consent: str) -> None:
        from ..enrolment import Enroller

        if name in store.names():
            raise StoreError(f"{name!r} is enrolled already; remove the profile first: emoinv profiles remove {name}")
        self._enroller = Enroller(encoder, calibration=store.calibration(encoder))
        self._store = store
        self._name = name
        self._consent = consent
        self.done = False

    @property
    def prompt(self) -> str:
        """What to say next."""
        return self._enroller.prompt

    def take(self, waveform: NDArray[Any], sample_rate: int) -> str:
        """Take one utterance; what became of it and what to say next."""
        feedback = self._enroller.add(waveform, sample_rate)
        if self._enroller.progress >= 1.0:
            self._store.put(self._enroller.profile(self._name, self._consent))
            self.done = True
            return f"{feedback.message} {self._name} is enrolled; the next utterances are judged."
        return f"{feedback.message} {feedback.progress:.0%} of what is advised. {feedback.prompt}"


def run(args: argparse.Namespace) -> int:
    """Serve until ctrl-C or SIGTERM."""
    import asyncio
    import logging

    try:
        from ..wyoming import Service, serve
    except ModuleNotFoundError as error:
        if error.name != "wyoming":
            raise
        raise EmoinvError(
            "the package wyoming is missing; install it with: pip install 'emoinv-edge[wyoming]'"
        ) from None
    log = logging.getLogger("emoinv_edge.wyoming")
    log.setLevel(logging.INFO)
    for shown in logging.getLogger("emoinv_edge").handlers:  # prompts and decisions too, not only warnings
        shown.setLevel(logging.INFO)
        shown.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    encoder = open_encoder(args)
    store = open_store(args)
    enrolment = StoredEnrolment(encoder, store, args.enrol, args.consent) if args.enrol else None
    for name in args.require or ():
        if name != args.enrol:
            store.get(name, model_fingerprint=encoder.fingerprint, audio=False)
    if enrolment is None and not store.names():
        raise EnrolmentError("nobody is enrolled; enrol a speaker first, or name one with --enrol")

    async def main() -> None:
        service = Service(
            StoredSpeakers(encoder, store, args),
            upstream=args.upstream,
            require=args.require is not None,
            prefix=args.prefix,
            enrolment=enrolment,
        )
        log.info("listening at %s for %s", args.uri, ", ".join(args.require or store.names()) or args.enrol)
        if enrolment is not None:
            log.info("enrolling %s: %s", args.enrol, enrolment.prompt)
        await serve(service, args.uri)

    try:
        asyncio.run(main())
    except ValueError as error:
        raise EmoinvError(f"{error}; give --uri and --upstream as tcp://HOST:PORT or unix://PATH") from None
    return EXIT_ACCEPT
