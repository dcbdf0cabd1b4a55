"""``python -m train morph``: prosody morphs of prepared sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "morph",
        "Make prosody morphs of the open corpora with the WORLD vocoder.",
        """examples:
  python -m train morph prepared/malayalam prepared/librispeech""",
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="prepared sets")
    parser.add_argument("--per-speaker", type=int, help="clips of each speaker (as in the recipe, else 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the shifts (0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the morphs of each set."""
    from ..progress import Progress
    from ..prosody_morphs import morph
    from ..recipes import MORPHS_PER_SPEAKER

    for folder in arguments.sets:
        per_speaker = arguments.per_speaker or MORPHS_PER_SPEAKER.get(folder.name, 20)
        made = morph(folder, per_speaker, arguments.seed, arguments.workers, Progress(f"morph {folder.name}"))
        print(f"{folder / 'morphs'}: {made} morphs")
    return 0
