"""The tools without a subject of their own: strict JSON, files written atomically, what machine this is."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from emoinv_edge.fields import read_count, read_fields, read_json, read_list, read_number, read_text
from emoinv_edge.files import write_atomically
from emoinv_edge.machine import describe_machine, installed_version, processor, resident_mb


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"x": Infinity}', "[" * 100_000, b"\xff\xfe{"])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"not JSON|utf-8"):
        read_json(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "thing should be a JSON object, got list"),
        ({"a": 1}, "thing: key 'b' is missing"),
        ({"a": 1, "b": 2, "c": 3}, "thing: key 'c' is unknown"),
    ],
)
def test_an_object_holds_exactly_its_keys(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_fields(values, ("a", "b"), "thing", optional=("d",))
    assert read_fields({"a": 1, "b": 2}, ("a", "b"), "thing", optional=("d",)) == {"a": 1, "b": 2, "d": None}


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (read_list, [1], (None, {}, "x")),
        (read_text, "x", (None, 3, ["x"])),
        (read_number, 2.5, (None, "2.5", True, float("nan"))),
        (read_count, 3, (None, 3.0, True, -1)),
    ],
)
def test_a_value_is_of_its_type(read: Any, good: Any, bad: tuple[Any, ...]) -> None:
    assert read(good, "thing") == good
    for value in bad:
        with pytest.raises(ValueError, match="thing should be"):
            read(value, "thing")


def test_a_file_takes_the_place_of_another_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, "n\u00e9w")
    assert path.read_text("utf-8") == "n\u00e9w"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_file_has_the_permissions_asked_for(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"x", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_processor_is_read_from_cpuinfo(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Board 5\nFeatures\t: fp asimd asimddp crc32\n\nprocessor\t: 1\n")
    assert processor(cpuinfo) == ("Board 5", {"fp", "asimd", "asimddp", "crc32"})
    about = describe_machine(cpuinfo)
    assert about["cpu"] == "Board 5" and about["flags"] == ["asimd", "asimddp"]
    assert {"python", "numpy", "onnxruntime"} <= set(about["versions"]) and about["cores"] >= 1
    name, flags = processor(tmp_path / "none")
    assert name and flags == set()


def test_a_version_is_that_of_the_distribution_or_empty() -> None:
    assert installed_version("numpy")[0].isdigit()
    assert installed_version("no-such-distribution") == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_resident_memory_is_that_of_a_process() -> None:
    own = resident_mb()
    assert own is not None and own == pytest.approx(resident_mb(os.getpid()), rel=0.1)
    assert resident_mb(2**30) is None
