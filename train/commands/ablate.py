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
setting goes on where the first stopped; OUT/results.csv and OUT/table.md fill as the runs end.

examples:
  python -m train ablate --start resnet34-lm.onnx --prepared prepared --corpora ased nemo baved -o runs/ablation
  python -m train ablate --start resnet34-lm.onnx --prepared prepared --corpora ased --arms aam +cosine -o runs/a""",
    )
    parser.add_argument("--start", type=Path, required=True, help="the public ResNet34-LM (.onnx), or a checkpoint")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared root, embedded (`train teach`)")
    parser.add_argument("--corpora", nargs="+", required=True, metavar="CORPUS", help="prepared emotional corpora")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--steps", type=int, default=300, help="of every arm (300)")
    parser.add_argument("--pairs", type=int, default=16, help="of a batch (16)")
    parser.add_argument("--pool-batches", type=int, default=150, help="different batches of views (150)")
    parser.add_argument("--rate", type=float, default=2e-4, help="peak learning rate (2e-4)")
    parser.add_argument("--pair-weight", type=float, help="lambda of the cosine loss, in the arms that have it")
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train the arms, print the table and write it."""
    import dataclasses

    import torch

    from ..ablation import ARMS, Budget, ablate, format_table
    from ..model import load_start
    from ..progress import Progress
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
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    encoder, spec, _ = load_start(arguments.start)
    sources, _ = open_sources(arguments.prepared, dict.fromkeys(arguments.corpora, 1.0), "research")
    schedule = dataclasses.replace(Budget().schedule, steps=arguments.steps, rate=arguments.rate)
    rows = ablate(
        encoder, spec, [(source.clips, source.embeddings) for source in sources], arguments.out, arms, arguments.seeds,
        Budget(schedule, arguments.pairs, min(arguments.pool_batches, arguments.steps)),
        log=lambda line: print(line, file=sys.stderr, flush=True), progress=Progress,
    )  # fmt: skip
    table = format_table(rows, arms)
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0
