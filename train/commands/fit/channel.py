"""``python -m train fit channel``: base through telephones, codecs, rooms and noise."""

from __future__ import annotations

import argparse

from .. import Commands
from .options import add_fit, finish, read_noise_folders, set_threads


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_fit(
        commands,
        "channel",
        "Fine-tune base, or CAM++, on speech that went over telephones, codecs, rooms and noise.",
        """The start's embeddings of the clean clips are the targets. Rooms are simulated once, about a second each,
and kept as rooms.npz in the output folder. --judge logs EERs by condition: of held-out speakers of speechocean762
and malayalam, and of any emotional corpus with four neutral clips enrolled. The published CAM++ learns this project's
features too.

examples:
  python -m train fit channel --start train/checkpoints/base.pt --prepared prepared --noise sounds \\
      --judge speechocean762 malayalam nemo emodb ased -o runs/channel
  python -m train fit channel --start base.pt --prepared prepared --noise sounds --steps 300 --threads 1 -o runs/try
  python -m train fit channel --start campplus_cn_en_common.pt --prepared prepared --noise sounds -o runs/campplus""",
        "a checkpoint of this project: base; or the published CAM++ (campplus_cn_en_common.pt)",
    )
    parser.add_argument("--steps", type=int, help="of 48 crops (as in the recipe)")
    parser.add_argument("--alpha", type=float, help="of the interpolation towards the run (as in the recipe)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train it."""
    import dataclasses

    from ...channel import Channels
    from ...channel_judge import ChannelJudge
    from ...channel_recipe import ALPHA, SCHEDULE, fit_channel, own_features
    from ...distributed import process_group, rank
    from ...evaluation.clips import is_neutral
    from ...model import load_checkpoint
    from ...prepare import PreparedSet
    from ...progress import Progress
    from ...rooms import read_rooms, simulate_rooms, write_rooms
    from ...teachers import open_teacher

    steps = SCHEDULE.steps if arguments.steps is None else arguments.steps
    alpha = ALPHA if arguments.alpha is None else arguments.alpha
    if steps < 1 or arguments.rooms < 1:
        raise ValueError("expected --steps and --rooms of 1 or more")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"expected --alpha from 0 to 1, got {alpha}")
    if arguments.start.suffix != ".pt":
        raise ValueError(f"{arguments.start}: expected a checkpoint of this project (.pt)")
    set_threads(arguments.threads)
    encoder, spec, saved = load_checkpoint(arguments.start)
    sets = {}
    for corpus in arguments.judge:
        clips = PreparedSet(arguments.prepared / corpus)
        clips.clips = [clips.clips[index] for index in clips.unheard()]
        sets[corpus] = (clips, "same" if all(is_neutral(clip) for clip in clips.clips) else "enrol")
    with process_group():
        arguments.out.mkdir(parents=True, exist_ok=True)
        bank = arguments.out / "rooms.npz"
        if rank() == 0 and not bank.is_file():
            write_rooms(bank, simulate_rooms(arguments.rooms, 7))
        rooms = read_rooms(bank) if bank.is_file() else simulate_rooms(arguments.rooms, 7)
        judge = ChannelJudge(own_features(spec), sets, simulate_rooms(40, 99)) if sets else None
        fit_channel(
            encoder, spec, arguments.prepared, arguments.out, open_teacher(arguments.start, num_threads=1),
            Channels(read_noise_folders(arguments.noise), rooms),
            dataclasses.replace(SCHEDULE, steps=steps, judge_every=SCHEDULE.judge_every if judge else 0),
            alpha=alpha, provenance=saved.get("provenance", {}), device=arguments.device, judge=judge,
            progress=Progress("fit channel"),
        )  # fmt: skip
    return finish(arguments)
