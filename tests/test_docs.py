"""The documents keep their word: blocks run as printed, commands and links exist, figures are measured.

The blocks of a page run in the order of the page, in one folder with recordings that stand in for the reader's own
(the demo's synthetic voices), and with a data folder of their own. A comment before a block gives the reason why it is
not run: ``<!-- not run: needs a microphone -->``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import soxr

import emoinv_edge
from benchmarks.documents import documents
from emoinv_edge.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CLIPS = ROOT / "emoinv_edge" / "demo" / "clips"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "benchmarks" / "README.md"])
WORDS = 900
ROWS, COLUMNS = 7, 6

# What the pages call the reader's recordings, and the clip of the demo that stands in for each.
OWNER = {
    "calm": "awb/neutral-1",
    "excited": "awb/excited-1",
    "soft": "awb/subdued-1",
    "annoyed": "awb/tense-1",
    "door": "awb/tired-1",
}
OTHERS = {"bob-calm": "slt/neutral-1", "bob-loud": "slt/excited-1", "stranger": "rms/excited-1"}
FAMILY = ("neutral-2", "neutral-3", "neutral-4", "tired-1", "excited-1")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str  # why, or empty

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start, reason = None, ""
    for number, line in enumerate(lines):
        if start is None:
            comment = re.fullmatch(r"<!-- not run: (.+) -->", line.strip())
            if comment:
                reason = comment[1]
            elif line.startswith("```"):
                start = number
            elif line.strip():
                reason = ""
        elif line.strip() == "```":
            language = lines[start].strip("`").strip()
            found.append(Block(page, start + 1, language, "\n".join(lines[start + 1 : number]), reason))
            start, reason = None, ""
    assert start is None, f"{page}: a block that begins in line {start} does not end"
    return found


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [page for page in PAGES if any(b.language in ("python", "sh") and not b.not_run for b in blocks(page))]


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader has it: recordings of an owner, of others, of visitors and of the family."""
    folder = tmp_path_factory.mktemp("recordings")

    def write(name: str, clip: str, speed: float = 1.0) -> None:
        waveform, rate = soundfile.read(CLIPS / f"{clip}.ogg", dtype="float32")
        if speed != 1.0:  # another speed is another voice
            waveform = soxr.resample(waveform, rate * speed, rate).astype(np.float32)
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, rate)

    for name, clip in {**OWNER, **OTHERS}.items():
        write(name, clip)
    for voice in ("kal", "rms", "slt"):
        for speed in (0.85, 1.15):
            for clip in ("neutral-2", "tired-1"):
                write(f"visitors/{voice}{speed}/{clip}", f"{voice}/{clip}", speed)
    for clip in FAMILY:
        write(f"family/ana/{clip}", f"awb/{clip}")
    for person, voice in (("ana", "awb"), ("bob", "slt")):
        for clip in FAMILY:
            write(f"people/{person}/{clip}", f"{voice}/{clip}")
    clips = sorted(folder.glob("people/*/*.wav"))
    lines = [f"{clip.relative_to(folder)},{clip.parent.name},{clip.stem.partition('-')[0]}" for clip in clips]
    (folder / "my-clips.csv").write_text("path,speaker,emotion\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def reader(tmp_path: Path, recordings: Path) -> Iterator[Path]:
    """The folder in which a reader types what a page shows; home and data are elsewhere, and new."""
    place, home, tools = tmp_path / "here", tmp_path / "home", tmp_path / "bin"
    shutil.copytree(recordings, place)
    (place / "data").mkdir()
    (place / "keys").mkdir()
    home.mkdir()
    tools.mkdir()
    for name, call in (("emoinv", "-m emoinv_edge"), ("python", "")):
        program = tools / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    before = Path.cwd()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EMOINV_")}
    new = {
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / "data"),
        "LOCALAPPDATA": str(home / "data"),
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    with mock.patch.dict(os.environ, {**kept, **new}, clear=True):
        os.chdir(place)
        try:
            yield place
        finally:
            os.chdir(before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the shell blocks are for a POSIX shell")
@pytest.mark.skipif(not (ROOT / "emoinv_edge/models/base.onnx").is_file(), reason="this checkout holds no model")
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_printed(page: Path, reader: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(block.page), "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)
        elif block.language == "sh":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text], capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, f"{block.where} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"


def test_a_block_that_is_not_run_gives_the_reason() -> None:
    for block in ALL_BLOCKS:
        assert block.language in ("python", "sh", "text", "javascript", "dockerfile", "yaml"), block.where
        if "--mic" in block.text or "Microphone(" in block.text:
            assert block.not_run, f"{block.where} needs a microphone and does not say so"


# -- commands ----------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a piece of shell that begins with ``emoinv``, ``python -m ...``, ``pytest``."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters = "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                yield from filter(None, [known(words)])
                words = []
            else:
                words.append(word)


def known(words: list[str]) -> list[str] | None:
    """The words from ``emoinv``, ``python -m``, ``pytest`` or ``bash`` on; None where there is none of them."""
    for index, word in enumerate(words):
        name = word.rsplit("/", 1)[-1]
        program = word == name or word.endswith(f"bin/{name}")
        if words[index - 1] in ("-u", "audio") or not program:  # a user or a folder of that name
            continue
        if name in ("emoinv", "pytest") or words[index : index + 2] == ["python", "-m"] or (index, name) == (0, "bash"):
            return [name, *words[index + 1 :]]
        if name == "install":  # of packages and files, whatever they are called
            return None
    return None


def quoted_commands(page: Path) -> list[tuple[str, list[str]]]:
    """Every command of a page, in its blocks, indented lines and `backquotes`, and where it stands."""
    text = page.read_text(encoding="utf-8")
    fences = [block for block in blocks(page) if block.language == "sh"]
    found = [(block.where, words) for block in fences for words in commands(block.text)]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    pieces = [*re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE), *re.findall(r"`([^`\n]+)`", prose)]
    for piece in pieces:
        if re.match(r"(\w+=\S+ )*(emoinv|pytest|python -m (train|export|benchmarks)|bash)\b", piece):
            found += [(page.name, words) for words in commands(piece)]
    return found


@functools.cache
def help_of(module: str, words: tuple[str, ...], columns: int = 200) -> str | None:
    """What a command prints for --help, so many columns wide; None if there is no such command."""
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [module, *words, "--help"]),
        mock.patch.dict(os.environ, {"COLUMNS": str(columns)}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(SystemExit),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        runpy.run_module(module, run_name="__main__")
    return out.getvalue() if out.getvalue().startswith("usage:") else None


def dead(words: list[str]) -> str | None:
    """Why a command does not exist, or None if it does."""
    program, *rest = words
    if program == "pytest":
        for target in (word for word in rest if word.endswith(".py") or "::" in word):
            path, _, name = target.partition("::")
            if not (ROOT / path).is_file():
                return f"no file {path}"
            if name and f"def {name.partition('[')[0]}(" not in (ROOT / path).read_text(encoding="utf-8"):
                return f"no test {name} in {path}"
        return None
    if program == "bash":
        return next((f"no file {word}" for word in rest if word.endswith(".sh") and not (ROOT / word).is_file()), None)
    module = "emoinv_edge"
    if program == "python":
        _, module, *rest = rest
        package, _, part = module.partition(".")
        if package not in ("train", "export", "benchmarks", "emoinv_edge"):
            return None
        if part and not (ROOT / package / f"{part.replace('.', '/')}.py").is_file():
            return f"no module {module}"
    if "..." in rest:
        rest = rest[: rest.index("...")]
    first = next((index for index, word in enumerate(rest) if word.startswith("-")), len(rest))
    if module == "emoinv_edge" and not rest[:first]:
        return None  # `emoinv --help` and the like
    text = help_of(module, tuple(rest[:first]))
    if text is None:
        return f"no such command: {' '.join(words)}"
    for option in (word.partition("=")[0] for word in rest[first:] if re.match(r"--?[a-z]", word)):
        if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text):
            return f"no option {option}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_no_page_names_a_command_that_does_not_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("it names what went")
    faults = [f"{where}: {fault}" for where, words in quoted_commands(page) if (fault := dead(words))]
    assert not faults, "\n".join(faults)


def test_every_claim_has_a_command() -> None:
    text = (DOCS / "claims.md").read_text(encoding="utf-8").partition("## Without a command")[0]
    rows = [row for row in re.findall(r"^\| (.+) \| (.+) \|$", text, re.MULTILINE) if row[0] != "claim"]
    assert len(rows) > 20
    for claim, cell in rows:
        assert list(commands(cell.strip("`"))), claim


def test_every_command_is_in_the_guide() -> None:
    used = {words[1] for block in ALL_BLOCKS if block.language == "sh" for words in commands(block.text)
            if words[0] == "emoinv" and len(words) > 1}  # fmt: skip
    used |= {words[1] for page in PAGES for _, words in quoted_commands(page) if words[0] == "emoinv" and words[1:]}
    missing = {command.__name__.rsplit(".", 1)[-1] for command in COMMANDS} - used
    assert not missing


def test_every_public_name_has_an_example() -> None:
    code = "\n".join(b.text for b in ALL_BLOCKS if b.language == "python")
    errors = {name for name in emoinv_edge.__all__ if name.endswith("Error")}
    missing = {name for name in emoinv_edge.__all__ if not re.search(rf"\b{name}\b", code)} - errors - {"__version__"}
    assert not missing


def command_lines() -> list[tuple[str, ...]]:
    """Every ``emoinv`` command and action."""
    found: list[tuple[str, ...]] = []
    for name in (module.__name__.rsplit(".", 1)[-1] for module in COMMANDS):
        actions = re.findall(
            r"^    (\w+)  ", (help_of("emoinv_edge", (name,)) or "").partition("actions:")[2], re.MULTILINE
        )
        found += [(name,), *((name, action) for action in actions)]
    return found


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_the_help_of_a_command_fits_a_screen_and_the_guide_explains_its_options(words: tuple[str, ...]) -> None:
    text = help_of("emoinv_edge", words, 80)
    assert text is not None and len(text.splitlines()) <= 40
    guide = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "CHANGELOG.md")
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help"}
    missing = {option for option in options if not re.search(rf"{option}(?![\w-])", guide)}
    assert not missing, f"no page of the guide explains {sorted(missing)}"


# -- README ------------------------------------------------------------------------------------------------------------


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.split()) <= WORDS


def figures_table() -> list[list[str]]:
    table = README.partition("<!-- figures: begin")[2].partition("-->")[2].partition("<!-- figures: end")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]


def test_the_table_of_the_readme_is_small() -> None:
    (_, *headings), _, *rows = figures_table()
    assert len(headings) + 1 <= COLUMNS and 3 <= len(rows) <= ROWS


def test_tables_and_pictures_are_those_of_the_results() -> None:
    for path, text in documents().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: write it anew: python -m benchmarks docs"


def test_the_readme_shows_every_picture_that_is_drawn_in_both_themes() -> None:
    drawn = [path.relative_to(ROOT).as_posix() for path in documents() if path.suffix == ".svg"]
    assert len(drawn) == 4 and all(f'"{name}"' in README for name in drawn)


# -- links -------------------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """A heading's anchor, as MkDocs and GitHub both make it of plain words."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = [*re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text), *re.findall(r'(?:src|srcset)="([^"]+)"', text)]
    for target in targets:
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: no heading for {target}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS).as_posix()}" in navigation, page.name
