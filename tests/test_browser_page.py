"""The page in headless Chromium, a file for a microphone: it enrols, verifies, refuses, and sends nothing."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emoinv_edge.audio import read_audio
from emoinv_edge.encoder import Encoder
from export.browser import export_browser
from export.portable import write_wav
from tests.test_other_languages import PAGE, node_modules

RATE = 16000
CLIPS = Path(__file__).parent.parent / "emoinv_edge" / "demo" / "clips"
DRIVE = Path(__file__).parent / "browser" / "drive.mjs"

pytestmark = pytest.mark.slow


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Another server: notes whatever reaches it."""

    reached: list[str]

    def handle_one_request(self) -> None:
        line = self.rfile.readline()
        if line:  # a browser may connect before it refuses to navigate; nothing is sent then
            self.reached.append(str(line))
        self.close_connection = True


@contextlib.contextmanager
def serving(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page with its vendor files and the model, served."""
    folder = tmp_path_factory.mktemp("site") / "page"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules", "vendor", "model"))
    modules = node_modules("onnxruntime-web", "@echogarden/fvad-wasm", "playwright-core")
    subprocess.run(["node", str(PAGE / "vendor.mjs"), str(modules), str(folder / "vendor")], check=True, timeout=60)
    export_browser(Encoder.open("base"), folder / "model", report=lambda line: None)
    with serving(functools.partial(Quiet, directory=str(folder))) as url:
        yield url


def played(path: Path, *clips: str) -> Path:
    """A file for the microphone: clips of the demonstration with pauses between them."""
    pause = np.zeros(round(1.3 * RATE), np.float32)
    parts = [part for clip in clips for part in (pause, read_audio(CLIPS / f"{clip}.ogg", RATE)[0])]
    waveform = np.concatenate([*parts, pause])
    write_wav(path, np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16), RATE)
    return path


def drive(site: str, folder: Path, user_data: Path, steps: list[list[Any]], **given: Any) -> dict[str, Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    shots = Path(os.environ.get("EMOINV_SCREENSHOTS", folder))
    values = {"url": site, "userData": str(user_data), "shots": str(shots), "steps": steps, "name": "page", **given}
    arguments = folder / "arguments.json"
    arguments.write_text(json.dumps(values, default=str), encoding="utf-8")
    playwright = node_modules("playwright-core") / "playwright-core"
    command = ["node", str(DRIVE), str(playwright), chromium, str(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert "failed" not in seen, seen
    assert seen["errors"] == []
    assert "cut itself off" in seen["ready"], seen
    assert all(re.match(rf"{re.escape(site)}|blob:{re.escape(site)}|data:|about:", url) for url in seen["requests"]), (
        seen
    )
    return seen


@pytest.fixture(scope="module")
def ana(site: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A browser in which ana was enrolled by microphone and keyboard, and her exported profile."""
    folder = tmp_path_factory.mktemp("ana")
    wav = played(folder / "enrol.wav", *(f"awb/neutral-{n}" for n in (1, 2, 3, 4)))
    exported = folder / "profile.json"
    seen = drive(site, folder, folder / "browser", [["enrol", {"name": "ana"}], ["export"]], wav=wav, exported=exported)
    assert seen["enrolled"] == "ana is enrolled."
    return folder / "browser", exported


def test_the_owner_is_accepted_on_a_slow_device_too(site: str, ana: tuple[Path, Path], tmp_path: Path) -> None:
    wav = played(tmp_path / "owner.wav", "awb/excited-1")
    seen = drive(site, tmp_path, ana[0], [["verify", {"slow": 4}]], wav=wav, name="owner")
    assert seen["verdict"] == "ACCEPT"
    assert seen["reason"].startswith("Accepted: ana.")
    assert "threshold 3.0" in seen["gauge"]


def test_another_speaker_is_rejected_by_an_imported_profile(site: str, ana: tuple[Path, Path], tmp_path: Path) -> None:
    wav = played(tmp_path / "other.wav", "rms/excited-1")
    steps: list[list[Any]] = [["import"], ["layout"], ["verify", {}], ["policy"]]
    elsewhere = type("Elsewhere", (Elsewhere,), {"reached": []})
    with serving(elsewhere) as other:
        seen = drive(
            site, tmp_path, tmp_path / "browser", steps, wav=wav, imported=ana[1], width=380, elsewhere=other,
            name="other",
        )  # fmt: skip
    assert seen["profiles"] == ["ana"]
    assert seen["verdict"] == "REJECT"
    assert seen["scrollWidth"] <= 380
    assert seen["nameless"] == [] and seen["small"] == []
    assert elsewhere.reached == []
    blocked = seen["blocked"]
    assert blocked["fetchElsewhere"] == blocked["fetchHome"] == "blocked"
    wanted = {"connect-src", "form-action", "frame-src", "img-src", "media-src", "script-src-elem", "worker-src"}
    assert wanted <= set(blocked["violations"])


def test_a_refused_microphone_is_explained_and_nothing_is_accepted(
    site: str, ana: tuple[Path, Path], tmp_path: Path
) -> None:
    seen = drive(site, tmp_path, ana[0], [["denied"]], deny=True)
    assert seen["problem"].startswith("The microphone was refused. Allow it")
    assert seen["verdict"] in (None, "")
    assert seen["state"] == "The microphone is off."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "0" * 64}, "made by another model"),
        ({"format": 2}, "expected format 1"),
        ({"exemplars": []}, "expected exemplars"),
    ],
)
def test_a_foreign_profile_is_not_imported(
    site: str, ana: tuple[Path, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps(json.loads(ana[1].read_text()) | change), encoding="utf-8")
    seen = drive(site, tmp_path, tmp_path / "browser", [["import"]], imported=foreign)
    assert message in seen["problem"]
    assert seen["profiles"] == []


def test_no_file_of_the_page_opens_a_way_that_the_policy_does_not_cover() -> None:
    for path in sorted(PAGE.glob("*.js")):
        for way in ("RTCPeerConnection", "window.open", "location.", "location =", "serviceWorker", "import("):
            assert way not in path.read_text(encoding="utf-8"), f"{path.name}: {way}"
