"""After a removal nothing of the profile can be found in the file."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from emoinv_edge.store import PLAINTEXT, KeySource, ProfileStore
from tests.store.profile_samples import KEY, MODEL, sample_exemplar, sample_profile
from tests.store.raw_store import pieces, pieces_of_file, sealed_columns

UTC = datetime.timezone.utc


@pytest.mark.parametrize("key", [KEY, PLAINTEXT], ids=["sealed", "plaintext"])
def test_after_remove_all_a_search_for_the_old_bytes_finds_nothing(folder: Path, key: KeySource) -> None:
    emptied = ProfileStore(folder / "p.db", key)
    audio = np.random.default_rng(5).bytes(20000)
    for name, seeds in (("anastasia", (1, 2, 3)), ("boniface", (4, 5))):
        emptied.put(sample_profile(name, seeds, dim=256, audio=audio, consent="on yellow paper"))
    emptied.adapt(emptied.get("boniface"), sample_exemplar(6, dim=256))
    emptied.note_verified("boniface", "accept")
    before = sealed_columns(emptied.path, "profile", "exemplar")
    assert len(before) == 2 * 2 + 6 + 5
    found = pieces_of_file(emptied.path)
    assert all(pieces(blob) and pieces(blob) <= found for blob in before)  # the search can find
    assert emptied.remove_all() == ["anastasia", "boniface"]
    assert [path.name for path in folder.iterdir()] == ["p.db"]
    found = pieces_of_file(emptied.path)
    for blob in before:
        assert not pieces(blob) & found
    content = emptied.path.read_bytes()
    for secret in (b"anastasia", b"boniface", b"yellow", audio[100:116], MODEL.encode()[:16]):
        assert secret not in content
    assert emptied.names() == []
    emptied.put(sample_profile("cy"))
    assert emptied.names() == ["cy"]


@pytest.mark.parametrize("key", [KEY, PLAINTEXT], ids=["sealed", "plaintext"])
def test_removal_of_one_leaves_nothing_of_it_and_all_of_the_others(folder: Path, key: KeySource) -> None:
    kept = ProfileStore(folder / "p.db", key)
    kept.put(sample_profile("bo", (4, 5), dim=64))
    others = sealed_columns(kept.path, "profile", "exemplar")
    kept.put(sample_profile("anastasia", (1, 2), dim=64, audio=b"clip" * 999))
    before = sealed_columns(kept.path, "profile", "exemplar") - others
    kept.remove("anastasia")
    found = pieces_of_file(kept.path)
    assert not any(pieces(blob) & found for blob in before)
    assert b"anastasia" not in kept.path.read_bytes()
    assert kept.get("bo") == sample_profile("bo", (4, 5), dim=64)
