"""What the tests of the profile store share: a folder in memory, a store in it, and a passphrase that costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emoinv_edge.store import Passphrase, ProfileStore
from tests.store.profile_samples import KEY, cheap_derive, memory_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


@pytest.fixture
def store(folder: Path) -> ProfileStore:
    return ProfileStore(folder / "p.db", KEY)


@pytest.fixture
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Passphrase, "derive", cheap_derive)
