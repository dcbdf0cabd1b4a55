"""Small profiles for the tests of the store, made from numbers; no model and no audio."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from emoinv_edge.errors import ProfileChangedError
from emoinv_edge.profiles import Exemplar, Profile
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.store import Passphrase, ProfileStore

MODEL = "ab" * 32
OTHER_MODEL = "cd" * 32
KEY = bytes(range(32))
WHEN = datetime.datetime(2024, 5, 6, 12, 0, tzinfo=datetime.timezone.utc)
QUALITY = SpeechQuality(
    net_speech_s=2.5,
    snr_db=21.0,
    clipped_fraction=0.0,
    level_dbfs=-23.0,
    log_f0_mean=4.8125,
    log_f0_std=0.125,
    tilt_db=-7.5,
    voiced_fraction=0.625,
)
# Whether the proofs run in their full length, as the project's issue on profiles asks for; minutes instead of seconds.
FULL = bool(os.environ.get("EMOINV_FULL_PROOFS"))


def sample_exemplar(seed: int, dim: int = 8, audio: bytes | None = None) -> Exemplar:
    """An exemplar whose embedding only `seed` decides."""
    vector = np.random.default_rng(seed).standard_normal(dim)
    return Exemplar((vector / np.linalg.norm(vector)).astype(np.float32), QUALITY, WHEN, audio)


def sample_profile(
    name: str,
    seeds: tuple[int, ...] = (1, 2),
    dim: int = 8,
    audio: bytes | None = None,
    expires: datetime.datetime | None = None,
    consent: str = "",
    model: str = MODEL,
    adapted: int = 0,
) -> Profile:
    """A profile with one exemplar a seed, the last so many of them adapted."""
    exemplars = tuple(sample_exemplar(seed, dim, audio) for seed in seeds)
    return Profile(name, model, exemplars, WHEN, expires, consent, num_adapted=adapted)


def adapt_anyhow(store: ProfileStore, name: str, exemplar: Exemplar, limit: int) -> None:
    """Adapt the profile as it is at the moment, however often others change it meanwhile."""
    while True:
        try:
            store.adapt(store.get(name), exemplar, limit=limit)
            return
        except ProfileChangedError:
            continue


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where the system has one, so that thousands of synced writes take seconds."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        yield Path(folder)


_derive = Passphrase.derive


def cheap_derive(passphrase: Passphrase, salt: bytes, log_n: int = 15, r: int = 8, p: int = 3) -> bytes:
    """In the place of `Passphrase.derive`: scrypt of the least cost, with the costs asked for in its salt."""
    return _derive(passphrase, salt + bytes((log_n, r, p)), 1, 1, 1)
