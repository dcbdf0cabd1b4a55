"""``python -m train fit pairs``: a compressed encoder fine-tuned on parallel pairs."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import Commands
from .options import add_fit, finish, read_setting


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_fit(
        commands,
        "pairs",
        "Fine-tune a compressed encoder on parallel pairs, its targets by the encoder it was compressed from.",
        """examples:
  python -m train fit pairs --start small.pt --teacher base.onnx --prepared prepared -o runs/pairs""",
        "small, a checkpoint",
    )
    parser.add_argument("--teacher", type=Path, required=True, metavar="FILE", help="of the targets: base.onnx or .pt")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train it."""
    from ...distributed import process_group
    from ...recipes import fit_pairs
    from ...teachers import open_teacher

    given = read_setting(arguments)
    with process_group():
        fit_pairs(
            given.encoder, given.spec, arguments.prepared, arguments.out, open_teacher(arguments.teacher),
            given.noises, given.rooms, given.provenance, **given.options,
        )  # fmt: skip
    return finish(arguments)
