"""One development set and its fit for all tests of calibration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emoinv_edge.calibration import Calibration
from tests.calibration.development import speech
from train.calibration.fit import fit_speech
from train.calibration.speech import DevelopmentSpeech
from train.calibration.trials import Evidence, teaching_trials


@pytest.fixture(scope="session", autouse=True)
def few_profiles_to_cover_with() -> Iterator[None]:
    """A tenth of the profiles that a fit draws to measure coverage, which takes half of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.calibration.coverage.DRAWS", 40)
        yield


@pytest.fixture(scope="session")
def development() -> DevelopmentSpeech:
    """Three corpora of twenty speakers."""
    return speech(0, 20)


@pytest.fixture(scope="session")
def teaching(development: DevelopmentSpeech) -> list[Evidence]:
    """The trials that weights are fitted on."""
    return teaching_trials(development)


@pytest.fixture(scope="session")
def fitted(development: DevelopmentSpeech) -> Calibration:
    """The calibration of `development`."""
    return fit_speech(development)
