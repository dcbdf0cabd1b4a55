"""``python -m train revoice``: further voices of prepared sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "revoice",
        "Make further voices of prepared sets: the same clips faster or slower, as other speakers.",
        """The copies lie beside the set, in a set named CORPUS+voices. Speakers held out of training get none.

examples:
  python -m train revoice prepared/malayalam prepared/librispeech""",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets")
    parser.add_argument("--per-voice", type=int, help="clips of each voice (as in the recipe, else 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the voices of each set."""
    from ..prepare import PreparedSet
    from ..progress import Progress
    from ..recipes import CLIPS_PER_VOICE
    from ..speed_voices import revoice

    for folder in arguments.sets:
        per_voice = arguments.per_voice or CLIPS_PER_VOICE.get(folder.name, 6)
        made = revoice(
            folder, per_voice, PreparedSet(folder).held_out, arguments.seed, Progress(f"revoice {folder.name}")
        )
        print(f"{folder}+voices: {made} clips")
    return 0
