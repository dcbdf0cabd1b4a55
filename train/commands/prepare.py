"""``python -m train prepare``: a corpus decoded, trimmed and stored."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "prepare",
        "Decode, trim and store a corpus as 16 kHz int16 with a manifest.",
        """A clip that cannot be used is listed in skipped.csv with its reason. Folders of one corpus are joined.

examples:
  python -m train prepare nemo downloads/nEMO -o prepared
  python -m train prepare librispeech downloads/part1 downloads/part2 -o prepared
  python -m train prepare mine --csv my-clips.csv -o prepared
  python -m train prepare voxceleb vox1 vox2 --shards /large/prepared --workers 16""",
    )
    parser.add_argument("corpus", help="its name: a corpus of `python -m train corpora`, or yours with --csv")
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="where it is unpacked")
    parser.add_argument("--csv", type=Path, help="a list of your own: path, speaker, [gender, emotion, sentence]")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--out", type=Path, help="the prepared root; a folder is made in it")
    where.add_argument(
        "--shards", type=Path, metavar="DIR", help="the same, in tar files of a gigabyte: for what no cache holds"
    )
    parser.add_argument("--per-speaker", type=int, help="at most so many clips of a speaker, spread over them (all)")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode (2)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prepare the corpus and print how many clips there are."""
    from ..corpora import clips_of, read_clip_csv
    from ..prepare import prepare, thin_speakers
    from ..progress import Progress

    if bool(arguments.csv) == bool(arguments.folders):
        raise ValueError("expected either the folders of a corpus or --csv FILE")
    if arguments.csv:
        clips = list(read_clip_csv(arguments.csv))
    else:
        clips = [clip for folder in arguments.folders for clip in clips_of(arguments.corpus, folder)]
    if arguments.per_speaker:
        clips = thin_speakers(clips, arguments.per_speaker)
    out = (arguments.out or arguments.shards) / arguments.corpus
    progress = Progress(f"prepare {arguments.corpus}")
    kept, skipped = prepare(clips, out, arguments.workers, progress, sharded=arguments.shards is not None)
    print(f"{out}: {kept} clips" + (f", {skipped} skipped (see {out / 'skipped.csv'})" if skipped else ""))
    return 0
