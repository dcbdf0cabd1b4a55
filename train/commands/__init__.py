"""The commands of ``python -m train``, one module each with ``add(commands)`` and ``run(arguments) -> int``.

They import what they need inside ``run``, so that ``python -m train --help`` answers at once and without torch.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

__all__ = ["Commands", "add_command"]

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    """A parser of one command whose help keeps its examples as written."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary}\n\n{text}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser
