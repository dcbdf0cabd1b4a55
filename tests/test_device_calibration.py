"""What a device adds to its model's calibration: bounded, only ever stricter, sealed, and gone with a reset."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from emoinv_edge.adaptation import Adapter
from emoinv_edge.calibration import FarTable
from emoinv_edge.cli import main
from emoinv_edge.conditions import Conditions, Heard
from emoinv_edge.device_calibration import MAX_SHIFT, Refinement, refine
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import CalibrationError
from emoinv_edge.store import PLAINTEXT, ProfileStore
from emoinv_edge.verifier import Verifier
from tests.builders import (
    ANA_HZ,
    NOW,
    RATE,
    build_encoder,
    calibration,
    enrolled,
    in_file,
    profile,
    synthesise,
    unit_vectors,
)

CALIBRATION = calibration(
    far_tables=(
        FarTable(1, (0.5, 0.2, 0.1, 0.01), (-4.0, -2.0, -1.0, 0.5)),
        FarTable(4, (0.5, 0.2, 0.1, 0.01), (-3.0, -1.0, 0.0, 1.0)),
    )
)


def impostors(shift: float, speakers: int = 40, seed: int = 0) -> dict[str, list[float]]:
    """LLRs as the table has them of impostors, moved by `shift`."""
    rng = np.random.default_rng(seed)
    rates = np.array([1.0, 0.5, 0.2, 0.1, 0.01, 0.001])[::-1]
    found = np.array([-12.0, -4.0, -2.0, -1.0, 0.5, 1.5])[::-1]
    return {
        f"s{k}": [float(np.interp(u, rates, found)) + shift for u in rng.uniform(0.001, 1.0, 25)]
        for k in range(speakers)
    }


def test_a_device_like_the_model_changes_little() -> None:
    found = refine(CALIBRATION, "f", impostors(0.0), file_sha256="e")
    assert abs(found.shift) < 0.25
    assert max(rise for _, rise in found.raises) < 0.4


@pytest.mark.parametrize("shift", [-1.5, 1.5])
def test_impostors_that_score_higher_pull_scores_down_and_lower_ones_up(shift: float) -> None:
    found = refine(CALIBRATION, "f", impostors(shift), file_sha256="e")
    assert found.shift * shift < 0
    assert 0.5 < abs(found.shift) < 1.5  # as far as the evidence of 40 speakers weighs


@settings(max_examples=40, deadline=None)
@given(shift=st.floats(-20.0, 20.0), speakers=st.integers(5, 60), seed=st.integers(0, 9), genuine=st.booleans())
def test_whatever_was_measured_the_refinement_is_bounded_and_keeps_the_rates(
    shift: float, speakers: int, seed: int, genuine: bool
) -> None:
    attempts = impostors(shift, speakers, seed)
    own = [shift + 6.0 + 0.1 * k for k in range(8)] if genuine else []
    found = refine(CALIBRATION, "f", attempts, own, file_sha256="e")
    assert abs(found.shift) <= MAX_SHIFT
    refined = found.apply(CALIBRATION)
    for before, after in zip(CALIBRATION.far_tables, refined.far_tables, strict=True):
        assert all(new >= old for old, new in zip(before.thresholds, after.thresholds, strict=True))
    for rate in (0.5, 0.2, 0.1):
        if rate * speakers < 1.0:
            continue
        threshold = refined.threshold(rate).llr
        accepted = np.mean([np.mean(np.array(values) + found.shift >= threshold) for values in attempts.values()])
        assert accepted <= rate + 1e-9


def test_genuine_recordings_move_the_scores_to_where_both_agree() -> None:
    low = refine(CALIBRATION, "f", impostors(-3.0), [-1.0, -0.5, 0.0, 0.3, 0.6, 1.0], file_sha256="e")
    assert low.shift > 0.3
    assert low.num_genuine == 6


def test_contradictory_or_scarce_recordings_are_refused() -> None:
    with pytest.raises(CalibrationError, match="5 impostor speakers or more, got 4"):
        refine(CALIBRATION, "f", impostors(0.0, 4), file_sha256="e")
    with pytest.raises(CalibrationError, match="5 genuine recordings or more, or none, got 2"):
        refine(CALIBRATION, "f", impostors(0.0), [3.0, 4.0], file_sha256="e")
    with pytest.raises(CalibrationError, match="swapped"):
        refine(CALIBRATION, "f", impostors(5.0), [-9.0] * 6, file_sha256="e")
    with pytest.raises(CalibrationError, match="not finite"):
        refine(CALIBRATION, "f", {**impostors(0.0), "x": [math.nan]}, file_sha256="e")


def refinement() -> Refinement:
    return Refinement("f" * 64, -0.5, ((0.5, 0.0), (0.1, 0.3)), 12, 0, NOW, "e" * 64)


def test_a_refinement_lies_in_the_sealed_store_and_is_gone_after_a_reset(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "profiles.db", bytes(32))
    assert store.device.refinements() == {} and not store.device.reset()
    store.put(profile("ana", *unit_vectors(1, 0), model="f" * 64))
    store.device.keep(refinement())
    anew = ProfileStore(tmp_path / "profiles.db", bytes(32))
    assert anew.device.refinements() == {"f" * 64: refinement()}
    assert [file.name for file in tmp_path.iterdir()] == ["profiles.db"]
    assert b"shift" not in (tmp_path / "profiles.db").read_bytes()
    assert anew.device.reset() and store.device.refinements() == {}


def test_rates_below_those_measured_inherit_the_rise() -> None:
    found = refinement().apply(CALIBRATION)
    assert found.far_tables[0].thresholds == pytest.approx((-4.0, -2.0, -0.7, 0.8))
    assert found.bias == -7.5


@pytest.mark.parametrize(
    "changes",
    [
        {"shift": 50.0},
        {"shift": None},
        {"raises": [[0.5, -3.0]]},
        {"raises": [[0.5]]},
        {"format": 2},
        {"surprise": 1},
        {"num_impostor_speakers": 1},
        {"num_impostor_speakers": "many"},
        {"created": "yesterday"},
    ],
)
def test_a_damaged_refinement_is_refused_not_ignored(changes: dict[str, object]) -> None:
    values = json.loads(json.dumps(refinement().to_values()))
    assert Refinement.from_values(values) == refinement()
    with pytest.raises(CalibrationError, match="--reset"):
        Refinement.from_values({**values, **changes})
    with pytest.raises(CalibrationError, match="--reset"):
        Refinement.from_values(None)


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_encoder(tmp_path_factory.mktemp("calibrate") / "tiny.onnx", metadata=in_file(CALIBRATION))


@pytest.fixture
def store(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "profiles.db"
    ProfileStore(path, PLAINTEXT).put(enrolled(Encoder(model), "ana", ANA_HZ))
    return path


def opened(path: Path) -> ProfileStore:
    return ProfileStore(path, PLAINTEXT)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str, list[float]], Path]:
    def make(name: str, pitches: list[float]) -> Path:
        for number, f0_hz in enumerate(pitches):
            speaker = tmp_path / name / ("ana" if name == "genuine" else f"visitor {number}")
            speaker.mkdir(parents=True, exist_ok=True)
            soundfile.write(speaker / f"{number}.wav", synthesise(1.6, 70 + number, f0_hz), RATE)
        return tmp_path / name

    return make


def test_calibrate_refines_shows_and_resets(
    store: Path, model: Path, folder: Callable[[str, list[float]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    visitors = folder("visitors", [100.0, 112.0, 125.0, 140.0, 155.0, 168.0])
    family = folder("genuine", [ANA_HZ] * 5)
    common = ["--store", str(store), "--plaintext"]
    arguments = ["calibrate", "--impostors", str(visitors), "--genuine", str(family), "--model", str(model), *common]
    assert main(arguments) == 0
    assert "6 impostor speakers and 5 genuine" in capsys.readouterr().out
    encoder = Encoder(model)
    refined = opened(store).calibration(encoder)
    assert refined is not None and refined != encoder.calibration
    assert main(["calibrate", "--show", "--json", *common]) == 0
    assert json.loads(capsys.readouterr().out)["shift"] == pytest.approx(refined.bias + 7.0)
    assert main(["calibrate", "--reset", *common]) == 0
    assert opened(store).calibration(encoder) == encoder.calibration
    assert main(["calibrate", "--show", *common]) == 0
    assert "model's own calibration" in capsys.readouterr().out


@pytest.mark.parametrize("count", [0, 3])
def test_calibrate_with_too_few_visitors_changes_nothing(
    store: Path, model: Path, folder: Callable[[str, list[float]], Path], count: int
) -> None:
    visitors = folder("visitors", [100.0, 120.0, 140.0][:count])
    arguments = ["calibrate", "--impostors", str(visitors), "--model", str(model)]
    assert main([*arguments, "--store", str(store), "--plaintext"]) == 3
    assert opened(store).device.refinements() == {}


def test_a_model_calibrated_anew_keeps_its_profiles_and_asks_for_the_devices_refinement_again(
    store: Path,
    model: Path,
    folder: Callable[[str, list[float]], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    visitors = folder("visitors", [100.0, 112.0, 125.0, 140.0, 155.0, 168.0])
    common = ["--model", str(model), "--store", str(store), "--plaintext"]
    assert main(["calibrate", "--impostors", str(visitors), *common]) == 0
    first = Encoder(model)
    assert opened(store).calibration(first) != first.calibration
    stricter = dataclasses.replace(CALIBRATION, bias=CALIBRATION.bias - 0.5)
    anew = Encoder(build_encoder(tmp_path / "anew.onnx", metadata=in_file(stricter)))
    # Going on with the model's own thresholds could accept more than the device was asked for.
    with pytest.raises(CalibrationError, match=r"calibrate again .* --reset"):
        opened(store).calibration(anew)
    clip = tmp_path / "ana.wav"
    soundfile.write(clip, synthesise(3.0, 9, ANA_HZ), RATE)
    there = ["--model", str(anew.path), "--store", str(store), "--plaintext"]
    assert main(["verify", "ana", str(clip), *there]) == 3
    assert "--reset" in capsys.readouterr().err
    assert main(["doctor", *there]) == 3
    assert "has other scores" in " ".join(capsys.readouterr().out.split())
    assert main(["calibrate", "--impostors", str(visitors), *there]) == 0
    assert opened(store).calibration(anew) not in (None, stricter)
    assert opened(tmp_path / "none.db").calibration(Encoder(model)) == CALIBRATION
    assert main(["calibrate", "--reset", "--store", str(store), "--plaintext"]) == 0
    assert opened(store).calibration(anew) == stricter
    profile = ProfileStore(store, PLAINTEXT).get("ana", model_fingerprint=anew.fingerprint)
    waveform = synthesise(3.0, 9, ANA_HZ)
    before, after = (Verifier(encoder, profile, prior=0.5).verify(waveform, RATE).score for encoder in (first, anew))
    assert before is not None and after == pytest.approx(before - 0.5)


def test_a_refinement_of_another_model_is_an_error_with_the_cure(store: Path, model: Path) -> None:
    """Going on without it would accept more than the device was set to, and in silence."""
    opened(store).device.keep(refinement())
    with pytest.raises(CalibrationError, match=r"calibrated for another model.*--reset"):
        opened(store).calibration(Encoder(model))


def test_an_unsealed_calibration_of_an_older_version_is_an_error_with_the_cure(
    store: Path, model: Path, folder: Callable[[str, list[float]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a file that everybody in the folder could change."""
    old = store.with_name("profiles.db.calibration.json")
    common = ["--store", str(store), "--plaintext"]
    visitors = folder("visitors", [100.0, 112.0, 125.0, 140.0, 155.0, 168.0])
    for cure in (["--reset"], ["--impostors", str(visitors), "--model", str(model)]):
        old.write_text("{}")
        with pytest.raises(CalibrationError, match=r"older version.*emoinv calibrate"):
            opened(store).calibration(Encoder(model))
        assert main(["calibrate", *cure, *common]) == 0
        assert not old.exists() and opened(store).calibration(Encoder(model)) is not None


def test_every_way_to_decide_with_a_store_applies_its_calibration(store: Path, model: Path) -> None:
    encoder, held = Encoder(model), opened(store)
    held.device.keep(
        dataclasses.replace(refinement(), model_fingerprint=encoder.fingerprint, file_sha256=encoder.file_sha256)
    )
    refined = held.calibration(encoder)
    assert refined is not None and refined.bias == CALIBRATION.bias - 0.5
    ways = (
        held.verifier("ana", encoder),
        held.verifier(None, encoder),
        Verifier(encoder, held),
        Verifier(encoder, held.get("ana"), store=held),
        Adapter(encoder, held, "ana").verifier,
    )
    assert all(way.calibration == refined for way in ways)
    assert Verifier(encoder, held.get("ana"), calibration=CALIBRATION, store=held).calibration == CALIBRATION


REACHED = Conditions(4600.0, -1.0, 0.5, 0.2, narrowest_hz=3500.0, least_snr_db=8.0, longest_decay_s=0.8)


def test_a_device_reaches_as_far_as_the_recordings_of_five_of_its_impostors() -> None:
    heard = {f"s{k}": [Heard(8000.0, 30.0, 0.2), Heard(3000.0 - 100.0 * k, 5.0 - k, 1.0 + 0.1 * k)] for k in range(6)}
    found = refine(CALIBRATION, "f", impostors(0.0), file_sha256="0" * 64, heard=heard)
    assert (found.narrowest_hz, found.least_snr_db) == (2900.0, 4.0)
    assert found.longest_decay_s == pytest.approx(1.1)
    reached = found.apply(dataclasses.replace(CALIBRATION, conditions=REACHED)).conditions
    assert reached == dataclasses.replace(REACHED, narrowest_hz=2900.0, least_snr_db=4.0, longest_decay_s=1.1)
    assert found.apply(CALIBRATION).conditions is None


def test_a_device_of_few_or_better_recordings_keeps_the_reach_of_the_model() -> None:
    few = {f"s{k}": [Heard(2000.0, 0.0, 2.0)] for k in range(4)}
    assert refine(CALIBRATION, "f", impostors(0.0), file_sha256="0" * 64, heard=few).narrowest_hz is None
    better = {f"s{k}": [Heard(8000.0, 40.0, 0.1)] for k in range(9)}
    found = refine(CALIBRATION, "f", impostors(0.0), file_sha256="0" * 64, heard=better)
    assert found.apply(dataclasses.replace(CALIBRATION, conditions=REACHED)).conditions == REACHED


def test_the_reach_of_a_device_is_kept_in_its_file_and_older_files_open_without() -> None:
    heard = {f"s{k}": [Heard(3000.0, 5.0, 1.0)] for k in range(5)}
    found = refine(CALIBRATION, "f", impostors(0.0), file_sha256="0" * 64, heard=heard)
    values = json.loads(json.dumps(found.to_values()))
    assert Refinement.from_values(values) == found
    for name in ("narrowest_hz", "least_snr_db", "longest_decay_s"):
        del values[name]
    old = Refinement.from_values(values)
    assert old == dataclasses.replace(found, narrowest_hz=None, least_snr_db=None, longest_decay_s=None)
    with pytest.raises(CalibrationError, match="narrowest_hz"):
        Refinement.from_values(values | {"narrowest_hz": -1.0})
