"""One development set and its fit for all tests of calibration."""

from __future__ import annotations

import pytest

from emoinv_edge.calibration import Calibration
from tests.calibration.development import speech
from train.calibration.fit import fit_speech
from train.calibration.speech import DevelopmentSpeech
from train.calibration.trials import Evidence, teaching_trials


@pytest.fixture
def a_quarter_of_the_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the few terms need no more of them than this, and are fitted a hundred times in one selection."""
    monkeypatch.setattr("train.calibration.weights.NONTARGETS_PER_CORPUS", 6000)


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
