"""What the commands of ``python -m train fit`` share."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import Commands, add_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from emoinv_edge.spec import EncoderSpec

    from ...model import ResidualEncoder

TEXT = "The run goes on where it stopped if the output folder holds one. Several GPUs or hosts: start with torchrun."


def add_fit(commands: Commands, name: str, summary: str, text: str, start: str) -> argparse.ArgumentParser:
    """A parser with the options of every fit."""
    parser = add_command(commands, name, summary, f"{TEXT}\n\n{text}")
    parser.add_argument("--start", type=Path, required=True, help=start)
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared root")
    parser.add_argument("--noise", type=Path, nargs="*", default=[], metavar="FOLDER", help="noise recordings")
    parser.add_argument("--rooms", type=int, default=150, help="simulated rooms (150)")
    parser.add_argument(
        "--judge", nargs="*", default=[], metavar="CORPUS", help="prepared sets for development figures"
    )
    parser.add_argument("--threads", type=int, help="of torch (all cores)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (cpu)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the run")
    return parser


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the options of `add_fit` stand for; `options` are keywords of every recipe."""

    encoder: ResidualEncoder
    spec: EncoderSpec
    provenance: dict[str, Any]
    noises: list[NDArray[np.float32]]
    rooms: list[NDArray[np.float32]]
    options: dict[str, Any]


def read_setting(arguments: argparse.Namespace) -> Setting:
    """Open the start and the noises, make the rooms."""
    from ...model import load_start
    from ...noise_and_rooms import simulate_rooms
    from ...progress import Progress
    from ...recipes import Judge

    set_threads(arguments.threads)
    encoder, spec, provenance = load_start(arguments.start)
    noises = read_noise_folders(arguments.noise)
    rooms = simulate_rooms(arguments.rooms, 0) if arguments.rooms else []
    judge = Judge(arguments.prepared, spec, dict.fromkeys(arguments.judge, 600)) if arguments.judge else None
    options = {"device": arguments.device, "judge": judge, "progress": Progress(f"fit {arguments.model}")}
    return Setting(encoder, spec, provenance, noises, rooms, options)


def set_threads(threads: int | None) -> None:
    """Threads of torch; all cores where none are given."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def read_noise_folders(folders: list[Path]) -> list[NDArray[np.float32]]:
    """The noises under the folders; none where there are no folders."""
    from ...noise_and_rooms import read_noises

    return read_noises(folders) if folders else []


def finish(arguments: argparse.Namespace) -> int:
    """Print where the model is."""
    print(f"{arguments.out / 'best.pt'}: export it with `python -m export make`", file=sys.stderr)
    return 0
