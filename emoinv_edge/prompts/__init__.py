"""What an enrolment asks for, in several languages: one file each, with a sentence for every name in `PROMPTS`."""

from __future__ import annotations

import functools
import importlib.resources
from pathlib import PurePath

from ..fields import read_fields, read_json, read_text

__all__ = ["PROMPTS", "languages", "read_prompts"]

PROMPTS = ("normal", "call", "soft", "excited", "tired", "smiling", "annoyed", "away", "enough")
FOLDER = importlib.resources.files(__name__)  # the library may lie in a zip


@functools.cache
def languages() -> tuple[str, ...]:
    """The languages that there are prompts in, by their code."""
    return tuple(sorted(PurePath(entry.name).stem for entry in FOLDER.iterdir() if entry.name.endswith(".json")))


@functools.lru_cache(maxsize=16)
def read_prompts(language: str) -> dict[str, str]:
    """The prompts in one language, by the names in `PROMPTS`.

    Raises
    ------
    ValueError
        If there is none in that language.
    """
    if language not in languages():
        raise ValueError(f"expected a language of {', '.join(languages())}, got {language!r}")
    values = read_fields(read_json((FOLDER / f"{language}.json").read_bytes()), ("language", *PROMPTS), language)
    return {name: read_text(values[name], name) for name in PROMPTS}
