"""``python -m train fit research``: base trained on with corpora whose licences forbid shipping what comes out."""

from __future__ import annotations

import argparse

from .. import Commands
from .options import add_fit, finish, read_setting


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_fit(
        commands,
        "research",
        "Go on from base with emotional corpora whose licences forbid shipping what comes out.",
        """examples:
  python -m train fit research --start runs/base/best.pt --prepared prepared -o runs/research""",
        "base, a checkpoint",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train it."""
    from ...distributed import process_group
    from ...recipes import BASE_PAIRS, RESEARCH_RUN, fit_run

    given = read_setting(arguments)
    with process_group():
        fit_run(
            given.encoder, given.spec, arguments.prepared, arguments.out, RESEARCH_RUN, given.noises, given.rooms,
            BASE_PAIRS, use="research", **given.options,
        )  # fmt: skip
    return finish(arguments)
