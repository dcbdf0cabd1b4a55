"""Arguments that several subcommands share, and what they open: the model, the store, a false-accept rate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..encoder import Encoder
    from ..store import ProfileStore

__all__ = ["DEFAULT_FAR", "add_command", "add_far", "add_json", "add_model", "add_store", "open_encoder", "open_store"]

DEFAULT_FAR = 0.01


def add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add the parser of one subcommand, with an example at the end of its help."""
    return subparsers.add_parser(
        name,
        help=summary[0].lower() + summary[1:].removesuffix("."),
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    parser.add_argument(
        "--model", default="base", metavar="NAME|FILE", help="'base', 'small' or an .onnx file (default: base)"
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add ``--store``."""
    parser.add_argument(
        "--store", type=Path, metavar="FILE", help="the file of profiles (default: in the user's data folder)"
    )


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
        help="allow a rate below what the calibration speech supports; the answer says so",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


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


def open_encoder(args: argparse.Namespace) -> Encoder:
    """The encoder that ``--model`` names."""
    from ..encoder import MODEL_NAMES, Encoder

    return Encoder.load(args.model) if args.model in MODEL_NAMES else Encoder(args.model)


def open_store(args: argparse.Namespace) -> ProfileStore:
    """The store that ``--store`` names."""
    from ..store import ProfileStore

    return ProfileStore(args.store)
