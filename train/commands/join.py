"""``python -m train join``: several encoders as one."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "join",
        "Join trained encoders into one whose cosine is the mean of theirs.",
        """They hear the same features; the embedding has the norm of the first one's. Choose the shares on development
corpora.

examples:
  python -m train join train/checkpoints/base.pt runs/campplus/best.pt --shares 0.5 0.5 --name large -o large.pt
  python -m export make large.pt -o large.onnx --speech prepared/speechocean762 prepared/librispeech""",
    )
    parser.add_argument("branches", type=Path, nargs="+", metavar="CHECKPOINT", help="two or more")
    parser.add_argument("--shares", type=float, nargs="+", required=True, metavar="SHARE", help="of each; the sum is 1")
    parser.add_argument("--name", default="large", help="of the encoder (large)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read them, and write them as one."""
    from ..recipes import join

    join(arguments.branches, arguments.shares, arguments.name, arguments.out)
    return 0
