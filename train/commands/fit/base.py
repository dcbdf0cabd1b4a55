"""``python -m train fit base``: the public weights fine-tuned on parallel pairs."""

from __future__ import annotations

import argparse

from .. import Commands
from .options import add_fit, finish, read_setting


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_fit(
        commands,
        "base",
        "Fine-tune the public weights on parallel pairs, with the fused target of several teachers.",
        """examples:
  python -m train fit base --start resnet34-lm.onnx --prepared prepared --noise sounds -o runs/base
  torchrun --nproc-per-node 4 -m train fit base --start resnet34-lm.onnx --prepared prepared -o runs/base""",
        "the public ResNet34-LM (.onnx), or a checkpoint",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train it."""
    from ...distributed import process_group
    from ...recipes import fit_base

    given = read_setting(arguments)
    with process_group():
        fit_base(
            given.encoder, given.spec, arguments.prepared, arguments.out, given.noises, given.rooms, **given.options
        )
    return finish(arguments)
