"""``python -m train corpora``: the corpora that have a recipe, or what one unpacked folder holds."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from . import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "corpora",
        "The corpora that have a recipe, or what one unpacked folder holds.",
        """examples:
  python -m train corpora
  python -m train corpora nemo downloads/nEMO""",
    )
    parser.add_argument("corpus", nargs="?", help="a corpus of the list")
    parser.add_argument("folder", nargs="?", type=Path, help="where it is unpacked")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the list, or the clips, speakers and emotions of one folder."""
    from ..corpora import CORPORA, clips_of

    if arguments.corpus is None:
        for corpus in CORPORA.values():
            layout = (corpus.clips.__doc__ or "").split("\n")[0]
            print(f"{corpus.name:16} {corpus.use:12} {corpus.licence:46} {layout}")
        return 0
    if arguments.folder is None:
        raise ValueError("expected the folder that holds the corpus after its name")
    clips = clips_of(arguments.corpus, arguments.folder)
    emotions = Counter(clip.emotion or "unknown" for clip in clips).most_common(8)
    speakers = len({clip.speaker for clip in clips if clip.speaker})
    print(f"{len(clips)} clips, {speakers} speakers; " + ", ".join(f"{name} {count}" for name, count in emotions))
    return 0
