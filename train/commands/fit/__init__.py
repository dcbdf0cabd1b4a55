"""``python -m train fit``: one command for each model that is trained."""

from __future__ import annotations

from .. import Commands, add_command
from . import base, channel, pairs, pretrain, research, small


def add(commands: Commands) -> None:
    """Add the group of commands."""
    text = "Each has --help with examples."
    models = add_command(commands, "fit", "Train an encoder: pretrain, base, channel, small, pairs or research.", text)
    group = models.add_subparsers(dest="model", required=True, metavar="MODEL")
    for command in (pretrain, base, channel, small, pairs, research):
        command.add(group)
