"""What a profile covers, as ``emoinv enroll`` and ``emoinv profiles show`` print it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..coverage import Coverage

__all__ = ["add_language", "coverage_fields", "coverage_lines", "parse_language"]


def add_language(parser: argparse.ArgumentParser) -> None:
    """Add ``--lang``."""
    from ..prompts import languages

    parser.add_argument(
        "--lang",
        type=parse_language,
        default="en",
        metavar="CODE",
        help=f"language of the prompts: {', '.join(languages())} (default: en)",
    )


def parse_language(text: str) -> str:
    """The code of a language that there are prompts in."""
    from ..prompts import read_prompts

    try:
        read_prompts(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def coverage_fields(found: Coverage, language: str = "en") -> dict[str, Any]:
    """The JSON object of a coverage, its prompt as text too."""
    from ..prompts import read_prompts

    return {**dataclasses.asdict(found), "prompt_text": read_prompts(language)[found.prompt]}


def coverage_lines(found: Coverage, name: str, language: str = "en") -> list[str]:
    """What is covered, what that leaves to be rejected, and what would help most."""
    from ..coverage import WIDE_BRIGHTNESS_DB, WIDE_EFFORT_DB, WIDE_F0_SEMITONES
    from ..prompts import read_prompts

    lines = [
        f"It covers {found.share:.0%} of what four emotions would: vocal effort {found.effort_db:.0f} of "
        f"{WIDE_EFFORT_DB:g} dB, pitch {found.f0_semitones:.0f} of {WIDE_F0_SEMITONES:g} semitones, brightness "
        f"{found.brightness_db:.0f} of {WIDE_BRIGHTNESS_DB:g} dB."
    ]
    if found.frr is not None:
        lines.append(
            f"In emotions that it has not heard, such a profile rejects about {found.frr:.0%} of its owner's "
            "utterances (acted speech, 1 in 100 impostors)."
        )
    lines.append(f"What would help most: {read_prompts(language)[found.prompt]} (emoinv enroll {name} --add FILE)")
    return lines
