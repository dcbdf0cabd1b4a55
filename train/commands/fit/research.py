"""``python -m train fit research``: base trained on with corpora whose licences forbid shipping what comes out."""

from __future__ import annotations

import argparse
import dataclasses

from .. import Commands
from .options import add_fit, finish, read_setting


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_fit(
        commands,
        "research",
        "Go on from base with emotional corpora whose licences forbid shipping what comes out.",
        """examples:
  python -m train fit research --start runs/base/best.pt --prepared prepared -o runs/research
  python -m train fit research --start runs/base/best.pt --prepared prepared \\
      --corpora mine=0.5 librispeech=0.5 -o runs/mine""",
        "base, a checkpoint",
    )
    parser.add_argument(
        "--corpora",
        type=parse_share,
        nargs="+",
        metavar="NAME[=SHARE]",
        help="prepared and taught sets to learn from, your own too, instead of the recipe's; SHARE of the pairs (1)",
    )
    parser.set_defaults(run=run)


def parse_share(text: str) -> tuple[str, float]:
    """A corpus and its share of the pairs."""
    name, _, share = text.partition("=")
    try:
        weight = float(share or 1.0)
    except ValueError:
        weight = 0.0
    if not name or not 0.0 < weight < float("inf"):
        raise argparse.ArgumentTypeError(f"expected NAME or NAME=SHARE with a share above 0, got {text!r}")
    return name, weight


def run(arguments: argparse.Namespace) -> int:
    """Train it."""
    from ...distributed import process_group
    from ...recipes import BASE_PAIRS, RESEARCH_RUN, fit_run

    given = read_setting(arguments)
    learnt = RESEARCH_RUN
    if arguments.corpora:
        learnt = dataclasses.replace(RESEARCH_RUN, shares=dict(arguments.corpora))
    with process_group():
        fit_run(
            given.encoder, given.spec, arguments.prepared, arguments.out, learnt, given.noises, given.rooms,
            BASE_PAIRS, use="research", **given.options,
        )  # fmt: skip
    return finish(arguments)
