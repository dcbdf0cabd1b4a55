"""Kinds 8 and 13: folders that others can write to, and what killed processes leave in them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from emoinv_edge.cli import main
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError, ModelFormatError, StoreError
from emoinv_edge.files import read_regular, write_atomically
from emoinv_edge.store import KeyFile, Passphrase, ProfileStore
from tests.builders import profile, unit_vectors

posix = pytest.mark.skipif(os.name != "posix", reason="links, owners and pipes as POSIX has them")
NOBODY = 65534
ANA = profile("ana", *unit_vectors(2, 0), model="ab" * 32)
WORD = Passphrase("correct horse")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


# -- links -----------------------------------------------------------------------------------------------------------


@posix
def test_no_planted_link_is_followed_when_something_is_written(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    target = tmp_path / "file"
    target.symlink_to(victim)
    write_atomically(target, "new")
    assert victim.read_text() == "precious" and target.read_text() == "new" and not target.is_symlink()


@posix
@pytest.mark.parametrize(
    "name",
    ["p.db.calibration.json", "p.db.calibration.json.tmp", "p.db.tmp", "p.db.key.tmp", "p.db.part", "p.db.key.new"],
)
def test_links_with_every_name_that_a_draft_ever_had_cost_no_victim(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / name).symlink_to(victim)
    store = ProfileStore(tmp_path / "p.db")
    for act in (lambda: store.put(ANA), lambda: store.rotate(store.own_key_file()), store.device.reset):
        act()
    assert victim.read_text() == "precious" and ProfileStore(tmp_path / "p.db").names() == ["ana"]


@posix
def test_rotation_with_the_key_on_another_medium_renews_it_there(tmp_path: Path) -> None:
    medium, folder = tmp_path / "medium", tmp_path / "folder"
    medium.mkdir()
    folder.mkdir()
    KeyFile(medium / "key").create()
    before = (medium / "key").read_text()
    (folder / "p.db.key").symlink_to(medium / "key")
    store = ProfileStore(folder / "p.db")
    store.put(ANA)
    assert main(["profiles", "rotate", "--store", str(folder / "p.db")]) == 0
    assert sorted(each.name for each in folder.iterdir()) == ["p.db", "p.db.key"]
    assert (folder / "p.db.key").is_symlink() and (medium / "key").read_text() != before
    assert [each.name for each in medium.iterdir()] == ["key"]
    assert ProfileStore(folder / "p.db").names() == ["ana"]


@posix
def test_no_key_is_made_where_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "p.db.key").symlink_to(tmp_path / "not mounted" / "key")
    with pytest.raises(StoreError, match="bring in the medium"):
        ProfileStore(tmp_path / "p.db").put(ANA)
    assert not (tmp_path / "not mounted").exists() and not (tmp_path / "p.db").exists()


# -- other users -----------------------------------------------------------------------------------------------------


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can give files away")
def test_a_key_of_another_user_is_not_taken(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "p.db")
    store.put(ANA)
    os.chown(tmp_path / "p.db.key", NOBODY, NOBODY)
    with pytest.raises(StoreError, match="belongs to another user"):
        ProfileStore(tmp_path / "p.db").names()


AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[2])
from emoinv_edge.errors import EmoinvError
from emoinv_edge.store import KeyFile, Passphrase, ProfileStore
from emoinv_edge.encoder import Encoder
from emoinv_edge.device_calibration import Refinement
os.setgid(65534); os.setuid(65534)
folder = sys.argv[1]
store = ProfileStore(folder + "/p.db")
acts = [store.names, store.list, store.log, store.purge, store.remove_all, lambda: store.get("ana"),
        lambda: store.usable("ab"), lambda: store.versions(["ana"]), store.device.refinements, store.device.reset,
        lambda: KeyFile(folder + "/p.db.key").read(), lambda: KeyFile(folder + "/p.db.key").create(),
        lambda: Encoder(folder + "/m.onnx"),
        lambda: store.import_profile(folder + "/x", Passphrase("correct horse"), model_fingerprint="ab")]
for act in acts:
    try:
        act()
    except EmoinvError:
        print("refused")
"""


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_without_permission_is_a_documented_error_everywhere(tmp_path: Path) -> None:
    ProfileStore(tmp_path / "closed" / "p.db").put(ANA)
    (tmp_path / "closed").chmod(0o700)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", AS_NOBODY, str(tmp_path / "closed"), str(root)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0 and answer.stdout.split() == ["refused"] * 14, answer.stdout + answer.stderr


# -- pipes -----------------------------------------------------------------------------------------------------------


def pipe_acts(folder: Path) -> dict[str, Callable[[], object]]:
    """What is read, by the name of the pipe that lies there instead."""
    return {
        "p.db": lambda: ProfileStore(folder / "p.db").names(),
        "p.db.key": lambda: ProfileStore(folder / "p.db").put(ANA),
        "given.key": lambda: KeyFile(folder / "given.key").read(),
        "ana.emoinv": lambda: ProfileStore(folder / "p.db").import_profile(
            folder / "ana.emoinv", WORD, model_fingerprint="ab" * 32
        ),
        "model.onnx": lambda: Encoder(folder / "model.onnx"),
    }


@posix
@pytest.mark.parametrize("name", ["p.db", "p.db.key", "given.key", "ana.emoinv", "model.onnx"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name, 0o600)
    with within(5.0), pytest.raises((StoreError, ModelFormatError), match="no regular file"):
        pipe_acts(tmp_path)[name]()


@posix
def test_pipes_beside_a_store_do_not_hang_it(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "p.db")
    store.put(ANA)
    for suffix in (".key.new", ".calibration.json", "-journal"):
        os.mkfifo(f"{store.path}{suffix}")
    with within(20.0):
        for act in (store.names, lambda: store.put(ANA), store.device.reset):
            with suppress(EmoinvError):
                act()
    os.unlink(f"{store.path}-journal")
    assert ProfileStore(tmp_path / "p.db").names() == ["ana"]


def test_a_file_larger_than_expected_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(100))
    assert len(read_regular(tmp_path / "large", 100)) == 100
    with pytest.raises(OSError, match="larger than 99 bytes"):
        read_regular(tmp_path / "large", 99)


# -- what kills leave ------------------------------------------------------------------------------------------------


def test_drafts_of_killed_processes_go_with_the_next_write_and_nothing_else_does(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "p.db")
    store.put(ANA)
    key = (tmp_path / "p.db.key").read_text()
    litter = ["p.db.0123abcd.tmp", "p.db.0123abcd.tmp-wal", "p.db.0123abcd.tmp-shm", "p.db.0123abcd.tmp-journal"]
    litter += [
        "p.db.key.0123abcd.part",
        "p.db.key.0123abcd.part.0123456789abcdef.part",
        "p.db.key.0123456789abcdef.part",
    ]
    litter += ["p.db.key.new.0123456789abcdef.part"]
    others = ["p.db.0123.tmp", "q.db.0123abcd.tmp", "p.db.tmp", "p.db.backup", "p.db.key.old", "p.db.key.0123abcd"]
    for name in [*litter, *others]:
        (tmp_path / name).write_text(key)
        os.utime(tmp_path / name, (1e9, 1e9))
    young = tmp_path / "p.db.89abcdef.tmp"  # of somebody who is at it just now
    young.write_text("")
    ProfileStore(tmp_path / "p.db").rotate(KeyFile(tmp_path / "p.db.key"))
    left = {each.name for each in tmp_path.iterdir()}
    assert left == {"p.db", "p.db.key", young.name, *others}


def test_a_second_link_to_the_live_key_goes(tmp_path: Path) -> None:
    """A kill between giving the draft its name and dropping the draft."""
    store = ProfileStore(tmp_path / "p.db")
    store.put(ANA)
    os.link(tmp_path / "p.db.key", tmp_path / "p.db.key.0123abcd.part")
    os.utime(tmp_path / "p.db.key", (1e9, 1e9))
    ProfileStore(tmp_path / "p.db").put(ANA)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["p.db", "p.db.key"]
