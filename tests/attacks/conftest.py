"""What the attacks share: a calibrated tiny encoder, its two voices, and a sealed store with ana in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emoinv_edge.encoder import Encoder
from emoinv_edge.store import ProfileStore
from tests.builders import ANA_HZ, calibrated_encoder, enrolled

KEY = bytes(range(32))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("attacks"))


@pytest.fixture
def store(tmp_path: Path, encoder: Encoder) -> ProfileStore:
    """A sealed store in which ana is enrolled."""
    held = ProfileStore(tmp_path / "profiles.db", KEY)
    held.put(enrolled(encoder, "ana", ANA_HZ))
    return held
