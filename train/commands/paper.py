"""``python -m train paper``: from VoxCeleb and Dusha on disk to the paper's table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import Commands, add_command
from .fit.pretrain import add_pretrain


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "paper",
        "The paper at the paper's scale: prepare, pretrain, baseline, full method, table.",
        """VoxCeleb 1 and 2 pretrain a ResNet34, which every arm then fine-tunes on Dusha's crowd, all layers. A second
call goes on where the first stopped. Under torchrun the corpora must be prepared already: call it first with
--prepare-only.

examples:
  python -m train paper --voxceleb VoxCeleb1 VoxCeleb2 --dusha crowd --noise musan --prepare-only -o runs/paper
  torchrun --nproc-per-node 8 -m train paper --voxceleb VoxCeleb1 VoxCeleb2 --dusha crowd --noise musan \\
      --device cuda --workers 12 -o runs/paper""",
    )
    parser.add_argument("--voxceleb", type=Path, nargs="+", required=True, metavar="DIR", help="where it is unpacked")
    parser.add_argument("--dusha", type=Path, required=True, metavar="DIR", help="where crowd.tar is unpacked")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--prepare-only", action="store_true", help="stop when the corpora are prepared")
    parser.add_argument(
        "--start", type=Path, metavar="FILE", help="a checkpoint or public .onnx instead of pretraining"
    )
    parser.add_argument("--steps", type=int, default=3000, help="of every arm (3000)")
    parser.add_argument("--pairs", type=int, default=32, help="of a batch, over all ranks (32)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    add_pretrain(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what is not done yet and print the table."""
    from ..distributed import process_group, rank, world_size

    if arguments.steps < 1 or arguments.pairs < 2 or arguments.pairs % world_size():
        raise ValueError(
            f"expected --steps of 1 or more and --pairs of 2 or more that {world_size()} ranks share evenly, "
            f"got {arguments.steps} and {arguments.pairs}"
        )
    prepared = arguments.out / "prepared"
    prepare_corpora(arguments, prepared)
    if arguments.prepare_only:
        return 0
    with process_group():
        table = make_table(arguments, prepared)
        if rank() == 0:
            (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
            print(table)
    return 0


def prepare_corpora(arguments: argparse.Namespace, prepared: Path) -> None:
    """Prepare, in shards, what is not prepared yet."""
    from ..corpora import clips_of
    from ..distributed import world_size
    from ..prepare import prepare
    from ..progress import Progress

    for corpus, folders in (("voxceleb", arguments.voxceleb), ("dusha", [arguments.dusha])):
        if (prepared / corpus / "manifest.csv").is_file():
            continue
        if world_size() > 1:
            raise ValueError(f"{prepared / corpus}: not prepared; call this without torchrun and with --prepare-only")
        clips = [clip for folder in folders for clip in clips_of(corpus, folder)]
        progress = Progress(f"prepare {corpus}")
        kept, skipped = prepare(clips, prepared / corpus, max(1, arguments.workers), progress, sharded=True)
        print(f"{prepared / corpus}: {kept} clips, {skipped} skipped (see skipped.csv)", file=sys.stderr)


def make_table(arguments: argparse.Namespace, prepared: Path) -> str:
    """Pretrain, embed Dusha by the result, train the arms and judge them."""
    from ..ablation import ARMS, Budget, ablate, format_table
    from ..distributed import rank, world_size
    from ..model import load_start
    from ..power import changes, format_changes, read_judged
    from ..progress import Progress, silent
    from ..recipes import open_sources
    from ..schedule import Schedule
    from ..teachers import embed_initial
    from .fit.pretrain import pretrain_on

    start = arguments.start or arguments.out / "pretrain" / "best.pt"
    if not start.is_file() and not arguments.start:
        pretrain_on(arguments, prepared, ["voxceleb"], arguments.out / "pretrain")
    encoder, spec, _ = load_start(start)
    if not (prepared / "dusha" / "public.npy").is_file():
        embed_initial(encoder, spec, prepared / "dusha", Progress("embed dusha") if rank() == 0 else silent)
    (source,), _ = open_sources(prepared, {"dusha": 1.0}, "research")
    schedule = Schedule(
        arguments.steps, rate=1e-4, lower_rate=0.75, frozen_stages=0, warmup_steps=max(1, arguments.steps // 20),
        floor=0.0,
    )  # fmt: skip
    rows = ablate(
        encoder, spec, [(source.clips, source.embeddings)], arguments.out / "ablation", ARMS, arguments.seeds,
        Budget(schedule, arguments.pairs // world_size(), whole=True),
        log=lambda line: print(line, file=sys.stderr, flush=True) if rank() == 0 else None,
        progress=lambda name: Progress(name) if rank() == 0 else silent,
        device=arguments.device, num_workers=arguments.workers,
    )  # fmt: skip
    return f"{format_table(rows)}\n\n{format_changes(changes(read_judged([row['judged'] for row in rows])))}"
