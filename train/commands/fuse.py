"""``python -m train fuse``: one target of several teachers."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "fuse",
        "Join the embeddings of several teachers into one target of the initial encoder's size.",
        """The sets must have been embedded by all of them (`teach --beside`); the targets are kept as fused.npy beside
each set. All sets that one run learns from must be fused together, and no others: the projection is fitted on them.

examples:
  python -m train fuse prepared/* --beside eres2net.onnx campplus.onnx""",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets")
    parser.add_argument("--beside", type=Path, nargs="+", required=True, metavar="TEACHER", help="other .onnx or .pt")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fit the projection and write the targets."""
    from ..teachers import fuse, open_teacher

    fuse(arguments.sets, [open_teacher(path) for path in arguments.beside])
    print(f"{len(arguments.sets)} sets: fused.npy")
    return 0
