"""``python -m train fit pretrain``: an encoder from random weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import Commands, add_command
from .options import TEXT, finish, read_noise_folders, set_threads


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "pretrain",
        "Train a ResNet34 from random weights to separate speakers (WeSpeaker's recipe for VoxCeleb).",
        f"""{TEXT}
A batch is shared by the ranks: 128 and 64 crops each on two. --accumulate N shares it further, for less memory.

examples:
  python -m train fit pretrain --prepared prepared --corpora voxceleb --noise musan -o runs/pretrain
  torchrun --nproc-per-node 8 -m train fit pretrain --prepared prepared --corpora voxceleb --noise musan \\
      --device cuda --workers 12 -o runs/pretrain""",
    )
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared root")
    parser.add_argument("--corpora", nargs="+", required=True, metavar="CORPUS", help="prepared sets to learn from")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the run")
    add_pretrain(parser)
    parser.set_defaults(run=run)


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    """The options that `paper` has too."""
    parser.add_argument("--noise", type=Path, nargs="*", default=[], metavar="FOLDER", help="noise recordings")
    parser.add_argument("--rooms", type=int, default=500, help="simulated rooms (500)")
    parser.add_argument("--epochs", type=float, help="of crops of 2 s (150)")
    parser.add_argument("--margin-epochs", type=float, help="of crops of 6 s with the larger margin (5)")
    parser.add_argument("--batch", type=int, help="crops of a step over all ranks; half as many of 6 s (256)")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N", help="share each rank's batch in N parts (1)")
    parser.add_argument("--judge-every", type=int, default=0, help="steps between two EERs of held-out speakers (0)")
    parser.add_argument("--workers", type=int, default=1, help="processes of a rank that make batches (1)")
    parser.add_argument("--compile", action="store_true", help="compile the encoder, which takes a minute or more")
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Train it."""
    from ...distributed import process_group

    with process_group():
        pretrain_on(arguments, arguments.prepared, arguments.corpora, arguments.out)
    return finish(arguments)


def pretrain_on(arguments: argparse.Namespace, prepared: Path, corpora: list[str], out: Path) -> None:
    """Pretrain as the options of `add_pretrain` say, on these prepared sets."""
    import dataclasses

    import torch

    from ...batch_norm import insert_batch_norm
    from ...model import ResidualEncoder
    from ...noise_and_rooms import simulate_rooms
    from ...prepare import PreparedSet
    from ...pretrain import SHAPE, SPEC, STAGES, pretrain
    from ...progress import Progress
    from ...recipes import Judge, corpora_of

    first, second = STAGES
    for name in ("epochs", "margin_epochs"):
        asked = getattr(arguments, name)
        if asked is not None and not asked > 0:
            raise ValueError(f"expected --{name.replace('_', '-')} above 0, got {asked}")
    if arguments.batch is not None and arguments.batch < 4:
        raise ValueError(f"expected --batch of 4 or more, got {arguments.batch}")
    batch = arguments.batch or first.batch
    stages = (
        dataclasses.replace(first, batch=batch, epochs=arguments.epochs or first.epochs),
        dataclasses.replace(second, batch=batch // 2, epochs=arguments.margin_epochs or second.epochs),
    )
    set_threads(arguments.threads)
    sets = [PreparedSet(prepared / corpus) for corpus in corpora]
    held_out: frozenset[str] = frozenset().union(*(each.held_out for each in sets))
    judged = {each.folder.name: 2000 for each in sets if each.held_out} if arguments.judge_every else {}
    torch.manual_seed(0)
    pretrain(
        insert_batch_norm(ResidualEncoder(SHAPE)), SPEC, sets, out, stages, arguments.accumulate,
        noises=read_noise_folders(arguments.noise),
        rooms=simulate_rooms(arguments.rooms, 0) if arguments.rooms else [], held_out=held_out,
        device=arguments.device, num_workers=arguments.workers, compiled=arguments.compile,
        judge=Judge(prepared, SPEC, judged) if judged else None, judge_every=arguments.judge_every if judged else 0,
        progress=Progress, provenance={"corpora": corpora_of(corpora), "teachers": []},
    )  # fmt: skip
