"""Arguments that several subcommands share, and what they open: the model, the store, a false-accept rate."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StoreError, UnknownSpeakerError
from .terminal import print_error

if TYPE_CHECKING:
    from ..decision import Verdict
    from ..encoder import Encoder
    from ..store import Passphrase, ProfileStore

__all__ = [
    "DEFAULT_FAR",
    "STORE_PASSPHRASE",
    "add_command",
    "add_far",
    "add_json",
    "add_model",
    "add_session",
    "add_shared",
    "add_store",
    "ask_passphrase",
    "note_verified",
    "open_encoder",
    "open_store",
    "parse_device",
    "parse_name",
    "positive",
]

DEFAULT_FAR = 0.01
STORE_PASSPHRASE = "EMOINV_STORE_PASSPHRASE"
AUDIT_WAIT_S = 0.5  # a decision, and a microphone, wait no longer for their record


class ShortUsage(argparse.RawDescriptionHelpFormatter):
    """Help whose first line names what must be given; the options are listed once, below it."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """Add the usage, with ``[options]`` for all that may be left out."""
        needed = [action for action in actions if action.required or not action.option_strings]
        if len(needed) < len(list(actions)) and usage is None:
            self._prog += " [options]"
        super().add_usage(usage, needed, (), prefix)


def add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add the parser of one subcommand, with an example at the end of its help."""
    return subparsers.add_parser(
        name,
        help=(summary[0].lower() + summary[1:]).partition("\n")[0].removesuffix("."),
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=ShortUsage,
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    parser.add_argument(
        "--model", default="base", metavar="NAME|FILE", help="base, small, large or an .onnx file (default: base)"
    )


def add_session(parser: argparse.ArgumentParser) -> None:
    """Add ``--session``."""
    parser.add_argument("--session", action="store_true", help="decide on attempts together, at --far over all of them")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add ``--store`` and the choice of its key."""
    parser.add_argument(
        "--store", type=Path, metavar="FILE", help="the file of profiles (default: in your data folder)"
    )
    key = parser.add_mutually_exclusive_group()
    key.add_argument(
        "--key-file", type=Path, metavar="FILE", help="the file of the store's key (default: the store's name + .key)"
    )
    key.add_argument(
        "--passphrase", action="store_true", help=f"seal the store with a passphrase: asked for, or ${STORE_PASSPHRASE}"
    )
    key.add_argument("--plaintext", action="store_true", help="do not seal the store: anyone who has it can read it")


def add_far(parser: argparse.ArgumentParser) -> None:
    """Add ``--far`` and ``--extrapolate``."""
    parser.add_argument(
        "--far",
        type=parse_far,
        default=DEFAULT_FAR,
        metavar="RATE",
        help="impostor attempts that may be accepted, as 0.01 or 1/100 (default: 1/100)",
    )
    parser.add_argument(
        "--extrapolate",
        action="store_true",
        help="allow a rate below what the calibration speech supports; the answer is marked",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def add_shared(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
    *,
    far: bool = False,
    store: bool = False,
    verbose: bool = False,
) -> None:
    """Add the options that most commands end with, in the order of every help text, and what runs the command."""
    if far:
        add_far(parser)
    if store:
        add_store(parser)
    add_model(parser)
    add_json(parser)
    if verbose:
        parser.add_argument("--verbose", action="store_true", help="with --json: pitch and envelope too")
    parser.set_defaults(run=run)


def parse_far(text: str) -> float:
    """A rate between 0 and 1 written as a decimal or a fraction."""
    numerator, _, denominator = text.replace(",", "").partition("/")
    try:
        rate = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a rate such as 0.01 or 1/100, got {text!r}") from None
    if not 0.0 < rate < 1.0:
        raise argparse.ArgumentTypeError(f"expected a rate between 0 and 1, both excluded, got {text!r}")
    return rate


def positive(what: str, most: float) -> Callable[[str], float]:
    """A parser of numbers above 0, e.g. ``positive("seconds", 3600)``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0.0 < value <= most:
            raise argparse.ArgumentTypeError(f"expected {what} above 0, at most {most:g}, got {text!r}")
        return value

    return parse


def parse_device(text: str) -> int | str:
    """A microphone's index or a part of its name."""
    return int(text) if text.isdigit() else text


def parse_name(text: str) -> str:
    """The name of a profile."""
    from ..profiles import checked_name

    try:
        return checked_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def open_encoder(args: argparse.Namespace) -> Encoder:
    """The encoder that ``--model`` names."""
    from ..encoder import Encoder

    return Encoder.open(args.model)


def open_store(args: argparse.Namespace) -> ProfileStore:
    """The store that ``--store`` names, with the key that the options name."""
    from ..store import PLAINTEXT, KeyFile, KeySource, ProfileStore

    key: KeySource | None = None
    if args.plaintext:
        key = PLAINTEXT
    elif args.passphrase:
        key = ask_passphrase(STORE_PASSPHRASE, "Passphrase of the store: ")
    elif args.key_file is not None:
        key = KeyFile(args.key_file)
    return ProfileStore(args.store, key)


def ask_passphrase(variable: str, prompt: str, twice: bool = False) -> Passphrase:
    """A passphrase from an environment variable, or asked for at the terminal; never from the command line.

    Raises
    ------
    StoreError
        If it is too short, the two answers differ, or there is nobody to ask.
    """
    from ..store import Passphrase

    # No local holds the text where anything is raised: a traceback with locals would show it.
    if variable in os.environ:
        given = [os.environ[variable]]
    elif not sys.stdin.isatty():
        raise StoreError(f"a passphrase is needed, and there is no terminal to ask at; set {variable}")
    else:
        given = [getpass.getpass(prompt)]
        if twice and getpass.getpass("The same again: ") != given[0]:
            given.clear()
            raise StoreError("the two passphrases differ; nothing was done, try again")
    try:
        return Passphrase(given.pop())
    except ValueError as error:
        raise StoreError(str(error)) from None


def note_verified(store: ProfileStore, name: str, verdict: Verdict, count: int = 1) -> bool:
    """Count decisions in the audit trail of a profile; whether that is done. A store that refuses gets a warning."""
    try:
        store.note_verified(name, verdict.name.lower(), count, timeout_s=AUDIT_WAIT_S)
    except UnknownSpeakerError:  # removed meanwhile, and its trail with it
        return True
    except StoreError as error:
        print_error(f"the audit trail was not written: {error}")
        return False
    return True
