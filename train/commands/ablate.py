"""``python -m train ablate``: the paper's table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "ablate",
        "The paper's table: each part of the method added in turn, and the controls.",
        """Speakers are split into training and development by the hash of their names. All arms start from the same
weights, learn for the same steps, and share the frozen layers below the last stage. A second call with the same
setting goes on where the first stopped; OUT/results.csv fills as the runs end. OUT/table.md holds the table, and how
each arm differs from AAM-softmax alone with intervals over speakers.

examples:
  python -m train ablate --start resnet34-lm.onnx --prepared prepared --corpora ased nemo baved -o runs/ablation
  python -m train ablate --start resnet34-lm.onnx --prepared prepared --corpora ased --arms aam +cosine -o runs/a
  python -m train ablate --start resnet34-lm.onnx --prepared prepared --corpora ased nemo crema_d --folds 5 --whole \
      --steps 1000 --pairs 32 -o runs/folds""",
    )
    parser.add_argument("--start", type=Path, required=True, help="the public ResNet34-LM (.onnx), or a checkpoint")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared root, embedded (`train teach`)")
    parser.add_argument("--corpora", nargs="+", required=True, metavar="CORPUS", help="prepared emotional corpora")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--steps", type=int, default=300, help="of every arm (300)")
    parser.add_argument("--pairs", type=int, default=16, help="of a batch of one rank (16)")
    parser.add_argument("--pool-batches", type=int, default=150, help="different batches of views (150)")
    parser.add_argument("--rate", type=float, default=2e-4, help="peak learning rate (2e-4)")
    parser.add_argument("--pair-weight", type=float, help="lambda of the cosine loss, in the arms that have it")
    parser.add_argument("--whole", action="store_true", help="all layers learn, not the last stage alone")
    parser.add_argument(
        "--folds", type=int, default=0, metavar="N", help="judge every speaker once, in N folds (one split)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda, with --whole (cpu)")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches, with --whole (1)")
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train the arms, print the table and write it."""
    import dataclasses

    import torch

    from ..ablation import ARMS, Budget, ablate, format_table
    from ..distributed import process_group, rank
    from ..folds import folds
    from ..model import load_start
    from ..power import changes, format_changes, read_judged
    from ..progress import Progress, silent
    from ..recipes import open_sources

    known = {arm.name: arm for arm in ARMS}
    unknown = sorted(set(arguments.arms or ()) - known.keys())
    if unknown:
        raise ValueError(f"no arm {', '.join(unknown)}; there are {', '.join(known)}")
    arms = [known[name] for name in arguments.arms or known]
    if arguments.pair_weight is not None:
        arms = [
            dataclasses.replace(arm, recipe=dataclasses.replace(arm.recipe, pair_weight=arguments.pair_weight))
            if arm.recipe.pair_weight
            else arm
            for arm in arms
        ]
    if arguments.folds < 0 or arguments.folds == 1:
        raise ValueError(f"expected --folds of 2 or more, got {arguments.folds}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    encoder, spec, _ = load_start(arguments.start)
    sources, _ = open_sources(arguments.prepared, dict.fromkeys(arguments.corpora, 1.0), "research")
    taught = [(source.clips, source.embeddings) for source in sources]
    schedule = dataclasses.replace(Budget().schedule, steps=arguments.steps, rate=arguments.rate)
    budget = Budget(schedule, arguments.pairs, min(arguments.pool_batches, arguments.steps), arguments.whole)
    held_out: list[frozenset[str] | None] = [None]
    outs = [arguments.out]
    if arguments.folds:
        held_out = [*folds([clips for clips, _ in taught], arguments.folds)]
        outs = [arguments.out / f"fold-{number}" for number in range(1, arguments.folds + 1)]
    with process_group():
        rows = []
        for out, developing in zip(outs, held_out, strict=True):
            rows += ablate(
                encoder, spec, taught, out, arms, arguments.seeds, budget,
                log=lambda line: print(line, file=sys.stderr, flush=True) if rank() == 0 else None,
                progress=lambda name: Progress(name) if rank() == 0 else silent, device=arguments.device,
                num_workers=arguments.workers, developing=developing,
            )  # fmt: skip
    if rank() != 0:
        return 0
    parts = [] if arguments.folds else [format_table(rows, arms)]
    if {"aam"} < {arm.name for arm in arms}:
        parts.append(format_changes(changes(read_judged([row["judged"] for row in rows]))))
    table = "\n\n".join(parts)
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0
