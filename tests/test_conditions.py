"""Conditions: what telephones do to scores, what lies beyond the calibration, and how both are named."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.adaptation import Adapter
from emoinv_edge.calibration import Calibration
from emoinv_edge.cli import main
from emoinv_edge.conditions import Conditions, Heard, describe, differ
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.errors import ModelFormatError
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import ProfileBank
from emoinv_edge.store import PLAINTEXT, ProfileStore
from emoinv_edge.verifier import Verifier
from tests.builders import (
    ANA_HZ,
    RATE,
    build_encoder,
    calibration,
    enrolled,
    in_file,
    quality,
    synthesise,
    unit_vectors,
)

KNOWN = Conditions(
    narrow_below_hz=4600.0, both_narrow=-1.5, profile_narrow=0.5, test_narrow=0.25,
    narrowest_hz=3000.0, least_snr_db=5.0, longest_decay_s=1.0,
)  # fmt: skip
WIDE, NARROW = 8000.0, 3750.0
bands = st.none() | st.floats(500.0, 8000.0)


def through_telephone(waveform: NDArray[np.float32], top_hz: float = 3400.0) -> NDArray[np.float32]:
    """300 Hz to `top_hz` at 8 kHz, and back to 16 kHz."""
    narrow = soxr.resample(waveform, RATE, 8000)
    spectrum, hz = np.fft.rfft(narrow), np.fft.rfftfreq(len(narrow), 1 / 8000)
    spectrum[(hz < 300.0) | (hz > top_hz)] = 0.0
    return soxr.resample(np.fft.irfft(spectrum, len(narrow)).astype(np.float32), 8000, RATE)


def shifted(profile_hz: float | None, test_hz: float | None, conditions: Conditions | None = KNOWN) -> float:
    """The LLR of one trial whose embeddings are always the same."""
    held, test = unit_vectors(2, 5)
    bank = ProfileBank.from_arrays(["ana"], held[None], [quality(bandwidth_hz=profile_hz)], [1])
    llrs, _ = bank.score(calibration(conditions=conditions), test, quality(bandwidth_hz=test_hz))
    return float(llrs[0])


def test_each_case_of_a_telephone_has_its_own_shift() -> None:
    plain = shifted(WIDE, WIDE, None)
    assert shifted(WIDE, WIDE) == plain
    assert shifted(NARROW, NARROW) == pytest.approx(plain - 1.5)
    assert shifted(NARROW, WIDE) == pytest.approx(plain + 0.5)
    assert shifted(WIDE, NARROW) == pytest.approx(plain + 0.25)


@given(profile_hz=bands, test_hz=bands)
@settings(deadline=None)
def test_an_unknown_band_never_makes_anybody_likelier(profile_hz: float | None, test_hz: float | None) -> None:
    known = shifted(profile_hz, test_hz)
    assert shifted(None, test_hz) <= known
    assert shifted(profile_hz, None) <= known
    assert shifted(None, None) <= known


@given(profile_hz=bands, narrow=st.floats(500.0, 4599.0), narrower=st.floats(500.0, 4599.0))
@settings(deadline=None)
def test_a_band_that_is_narrower_still_buys_nothing_more(
    profile_hz: float | None, narrow: float, narrower: float
) -> None:
    assert shifted(profile_hz, narrow) == shifted(profile_hz, narrower)


@given(narrow=st.floats(500.0, 4599.0))
@settings(deadline=None)
def test_an_impostor_gains_at_most_the_calibrated_shift_by_a_telephone_of_their_own(narrow: float) -> None:
    assert shifted(WIDE, narrow) - shifted(WIDE, WIDE) == pytest.approx(KNOWN.test_narrow)
    assert shifted(NARROW, narrow) < shifted(NARROW, WIDE)  # beside an owner's telephone another is no help


def test_conditions_survive_the_file_and_older_calibrations_have_none() -> None:
    held = calibration(conditions=KNOWN)
    assert Calibration.from_json(held.to_json()) == held
    values = json.loads(held.to_json())
    del values["conditions"]
    assert Calibration.from_json(json.dumps(values)).conditions is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"both_narrow": math.nan}, "finite"),
        ({"test_narrow": 7.0}, "-6 to 6"),
        ({"narrowest_hz": 0.0}, "narrowest_hz"),
        ({"narrowest_hz": 5000.0}, "narrowest_hz"),
        ({"longest_decay_s": "1"}, "finite"),
        ({"more": 1.0}, "unknown"),
    ],
)
def test_conditions_of_a_damaged_file_are_refused(change: dict[str, object], said: str) -> None:
    values = json.loads(calibration(conditions=KNOWN).to_json())
    values["conditions"] |= {key: None if value is math.nan else value for key, value in change.items()}
    with pytest.raises(ModelFormatError, match=said):
        Calibration.from_json(json.dumps(values))


def test_conditions_have_names() -> None:
    assert describe(Heard(8000.0, 30.0, 0.2)) == "wide band"
    assert describe(Heard(3750.0, 12.0, 0.2)) == "telephone band, noisy"
    assert describe(Heard(7500.0, 30.0, 0.6)) == "wide band, echoing"
    assert describe(Heard()) == "unknown band"


def test_only_two_known_bands_that_differ_give_a_warning() -> None:
    assert "enrolled in telephone band, this is wide band" in differ(Heard(NARROW), Heard(WIDE))
    assert differ(Heard(NARROW), Heard(3500.0)) == differ(Heard(None), Heard(WIDE)) == ""


def test_a_profile_was_heard_as_the_mean_of_its_exemplars_that_are_known() -> None:
    measured = [quality(bandwidth_hz=4000.0, decay_s=0.2), quality(bandwidth_hz=8000.0), quality()]
    bank = ProfileBank.from_arrays(["ana", "bob"], unit_vectors(4, 1), [*measured, quality(snr_db=3.0)], [3, 1])
    assert bank.heard(0) == Heard.of(*measured) == Heard(6000.0, 25.0, 0.2)
    assert bank.heard(1) == Heard(None, 3.0, None)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    held = calibration(conditions=KNOWN)
    return Encoder(build_encoder(tmp_path_factory.mktemp("conditions") / "tiny.onnx", metadata=in_file(held)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bandwidth_hz": 2750.0}, "band of 2750 Hz"),
        ({"snr_db": 3.0}, "3 dB above its noise"),
        ({"decay_s": 1.5}, "reverberates for 1.50 s"),
    ],
)
@pytest.mark.parametrize("whose", ["test", "profile"])
def test_a_decision_beyond_the_calibration_is_marked_and_names_the_condition(
    calibrated: Encoder, change: dict[str, float], named: str, whose: str
) -> None:
    profile = enrolled(calibrated, "ana", ANA_HZ)
    usual = dataclasses.replace(profile.exemplars[0].quality, bandwidth_hz=WIDE, snr_db=20.0, decay_s=0.3)
    strange = dataclasses.replace(usual, **change)

    def decide(held: SpeechQuality, test: SpeechQuality):  # type: ignore[no-untyped-def]
        exemplars = tuple(dataclasses.replace(each, quality=held) for each in profile.exemplars)
        verifier = Verifier(calibrated, dataclasses.replace(profile, exemplars=exemplars))
        return verifier.decide(profile.exemplars[0].embedding, test)

    inside = decide(usual, usual)
    assert not inside.extrapolated and inside.reason.endswith(f"threshold {inside.threshold:.2f}")
    outside = decide(*((usual, strange) if whose == "test" else (strange, usual)))
    assert outside.extrapolated
    assert f"the {whose} " in outside.reason and named in outside.reason


def test_what_a_telephone_carried_is_known_and_named_whatever_the_rate_of_the_file(
    calibrated: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enroller = Enroller(calibrated)
    for take in range(2):
        assert enroller.add(through_telephone(synthesise(3.0, 1000 + take, ANA_HZ)), RATE).accepted
    store = ProfileStore(tmp_path / "profiles.db", key=PLAINTEXT)
    store.put(enroller.profile("ana"))
    assert store.info("ana").condition.startswith("telephone band")
    file = tmp_path / "now.wav"
    soundfile.write(file, synthesise(3.0, 2000, ANA_HZ), RATE)
    given = ["--store", str(store.path), "--plaintext"]
    main(["verify", "ana", str(file), "--model", str(calibrated.path), *given, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["profile_condition"].startswith("telephone band") and answer["condition"].startswith("wide band")
    assert "enrolled in telephone band" in answer["warning"]
    main(["verify", "ana", str(file), "--model", str(calibrated.path), *given])
    assert "owners are rejected more often" in capsys.readouterr().err
    main(["profiles", "show", "ana", *given])
    assert "telephone band" in capsys.readouterr().out
    main(["doctor", *given])
    assert "heard in telephone band" in capsys.readouterr().out


def test_an_accept_beyond_the_calibration_teaches_the_profile_nothing(calibrated: Encoder, tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "profiles.db", key=PLAINTEXT)
    store.put(enrolled(calibrated, "ana", ANA_HZ))
    adapter = Adapter(calibrated, store, "ana", 0.5, margin=0.0)
    examined = adapter.verifier.examine(synthesise(3.0, 5, ANA_HZ), RATE)
    assert examined.decision.accepted and examined.embedding is not None
    assert not adapter.consider(dataclasses.replace(examined.decision, extrapolated=True), examined.embedding)
