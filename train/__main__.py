"""The training's commands: ``python -m train COMMAND``, each a module of `train.commands`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from emoinv_edge.errors import EmoinvError

from .commands import (
    ablate,
    audit,
    calibration,
    corpora,
    evaluate,
    fit,
    fuse,
    join,
    morph,
    paper,
    prepare,
    revoice,
    teach,
)

COMMANDS = (corpora, prepare, audit, revoice, teach, fuse, morph, fit, join, evaluate, calibration, ablate, paper)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train, distil and judge speaker encoders; needs the extra: pip install -e '.[train]'.",
        epilog="Each command has --help with examples. The usual order: corpora, prepare, teach, fit, evaluate.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 1 for broken input (one line on stderr), 2 for wrong usage."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (EmoinvError, ValueError, OSError) as error:
        print(f"python -m train {arguments.command}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in {"train", "emoinv_edge"}:
            raise
        print(
            f"python -m train {arguments.command}: the package {error.name} is missing; "
            "install what training needs with: pip install -e '.[train]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
