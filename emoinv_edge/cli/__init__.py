"""The ``emoinv`` command: one module a subcommand, each with ``add_parser(subparsers)`` and ``run(args)``.

`main` returns the exit status:

====  ==============================================================================
0     done; for ``verify``, ``identify`` and ``listen``: accepted, and nothing else
1     rejected
2     no decision (too little speech, clipping, ...)
3     an error: wrong usage, a missing file, an unknown speaker, a damaged model; also
      ``--help`` and ``--version`` beside a command that decides
130   stopped with ctrl-C
====  ==============================================================================

With several recordings it is the highest of theirs; ``enroll`` and ``embed`` exit with 2 where
only some of them were taken.

Subcommands import what they need inside ``run``, so that ``emoinv --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from .. import __version__
from ..errors import EmoinvError, OutOfMemoryError
from . import (
    bench,
    calibrate,
    compare,
    demo,
    doctor,
    embed,
    enroll,
    identify,
    listen,
    model,
    profiles,
    terminal,
    verify,
    wyoming,
)
from .terminal import EXIT_ERROR, EXIT_INTERRUPTED

__all__ = ["build_parser", "main"]

DECIDING = frozenset({"verify", "identify", "listen", "compare"})

COMMANDS: tuple[ModuleType, ...] = (
    demo,
    enroll,
    verify,
    identify,
    listen,
    compare,
    embed,
    profiles,
    calibrate,
    model,
    wyoming,
    bench,
    doctor,
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose usage errors exit with 3, since 2 means "no decision"; it takes no abbreviations."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # `--he` would be --help, and `--vers` --version: what exits at once must be asked for in full.
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 3."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_ERROR, terminal.legible(f"{self.prog}: error: {message}; see `{self.prog} --help`\n"))


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``emoinv`` with every subcommand."""
    parser = Parser(
        prog="emoinv",
        description="Speaker verification on this device, robust to emotion. No audio leaves it.",
        epilog="exit status: 0 accept or done, 1 reject, 2 no decision, 3 error, 130 ctrl-C",
    )
    parser.add_argument("--version", action="version", version=f"emoinv-edge {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``emoinv`` and return its exit status (the table in this module's docstring)."""
    words = list(sys.argv[1:] if argv is None else argv)
    terminal.escape_unencodable()
    try:
        args = build_parser().parse_args(words)
    except SystemExit as exit_:  # --help, --version, or wrong usage
        # Help decides nothing: a script that reads 0 as an accept must not find it where a decision was asked for.
        return EXIT_ERROR if exit_.code != 0 or DECIDING.intersection(words) else 0
    library = logging.getLogger("emoinv_edge")
    shown = terminal.LoggedToTerminal(logging.WARNING)
    library.addHandler(shown)
    library.propagate = False
    try:
        status: int = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        terminal.print_error("stopped with ctrl-C")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `emoinv ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except MemoryError:
        cure = "cut the recording, free some memory, or take --model small"
        return terminal.report_failure(OutOfMemoryError(f"out of memory; {cure}"), as_json=getattr(args, "json", False))
    except (EmoinvError, OSError) as error:
        return terminal.report_failure(error, as_json=getattr(args, "json", False))
    except Exception as error:  # 1 would read as "rejected", so a defect exits with 3 too
        traceback.print_exc()
        return terminal.report_failure(error, as_json=getattr(args, "json", False))
    finally:
        library.removeHandler(shown)
        library.propagate = True
