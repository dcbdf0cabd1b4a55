"""ONNX Runtime as this library uses it: no network, no files, no log of its own, memory given back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emoinv_edge.errors import EmoinvError, ModelFormatError
from emoinv_edge.session import import_onnxruntime, open_session, run_outputs

MODELS = Path(__file__).parents[1] / "emoinv_edge" / "models"
EMBED = f"""
import numpy as np
from emoinv_edge.session import open_session, run_outputs
session = open_session(open({str(MODELS / "small.onnx")!r}, "rb").read())
features = np.random.default_rng(0).standard_normal((1, 100, 80)).astype(np.float32)
"""


def features(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).standard_normal((1, frames, 80)).astype(np.float32)


@pytest.fixture(scope="module")
def small() -> bytes:
    return (MODELS / "small.onnx").read_bytes()


def child(code: str, home: Path, *before: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in another Python with a home folder of its own and nothing set that stops telemetry."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(MODELS.parents[1])} | variables
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)


# --- no network, no files ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "run_outputs(session, ['embedding'], {'features': features})",
        "run_outputs(session, ['embedding'], {'features': features}, shrink=True)",
        "del session",
    ],
)
@pytest.mark.parametrize("variables", [{}, {"ORT_DISABLE_TELEMETRY": "0"}], ids=["unset", "set to 0"])
def test_a_session_leaves_nothing_in_the_home_folder(tmp_path, code, variables):
    child(EMBED + code, tmp_path, **variables)
    assert list(tmp_path.rglob("*")) == []


def test_verifying_leaves_nothing_in_the_home_folder_and_opens_no_connection(tmp_path):
    trace, home = tmp_path / "trace", tmp_path / "home"
    home.mkdir()
    strace = shutil.which("strace")
    before = [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmmsg", "-o", str(trace)] if strace else []
    child(
        EMBED + "run_outputs(session, ['embedding'], {'features': features})\nimport time; time.sleep(1)", home, *before
    )
    assert list(home.rglob("*")) == []
    if strace:
        assert not re.search("AF_INET|events", trace.read_text(errors="replace"))


@pytest.mark.parametrize(
    "command", [["doctor"], ["compare", "A", "A"], ["demo"], ["model", "verify", "small"]], ids=" ".join
)
def test_a_command_leaves_nothing_in_the_home_folder_and_opens_no_socket(tmp_path, command):
    """Sockets are watched by an audit hook, which sees what Python opens; strace, above, sees the rest."""
    home, clip = tmp_path / "home", MODELS.parent / "demo" / "clips" / "awb" / "excited-1.ogg"
    home.mkdir()
    words = [str(clip) if word == "A" else word for word in command]
    watched = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.bind', 'socket.getaddrinfo', 'urllib.Request'):\n"
        "        raise SystemExit(f'{event} {arguments}')\n"
        "sys.addaudithook(watch)\n"
        f"from emoinv_edge.cli import main\nsys.exit(main({words!r}))"
    )
    child(watched, home)
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("folder", ["emoinv_edge", "train", "export", "benchmarks", "examples"])
def test_onnxruntime_is_imported_in_one_place_only(folder):
    found = [
        str(path.relative_to(MODELS.parents[1]))
        for path in sorted((MODELS.parents[1] / folder).rglob("*.py"))
        if re.search(
            r"^(?! {4}from onnxruntime import InferenceSession)\s*(import|from) onnxruntime",
            path.read_text("utf-8"),
            re.M,
        )
    ]
    assert found == (["emoinv_edge/session.py"] if folder == "emoinv_edge" else [])


def test_processes_that_are_started_afterwards_send_nothing_either():
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


# --- one session -------------------------------------------------------------------------------


def test_options_of_memory_and_log_change_no_bit(small):
    import onnxruntime

    plain = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    session = open_session(small)
    for frames in (10, 300, 1200, 300):
        given = {"features": features(frames)}
        expected = plain.run(["embedding"], given)[0]
        assert np.array_equal(run_outputs(session, ["embedding"], given)[0], expected)
        assert np.array_equal(run_outputs(session, ["embedding"], given, shrink=True)[0], expected)


def test_session_configuration_and_optimisation_can_be_chosen(small):
    options = open_session(small, 2, optimise=False, config={"session.x64quantprecision": "1"}).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("content", [b"", b"no model", bytes(1000)])
def test_what_is_no_model_is_refused_without_a_log(content, capfd):
    with pytest.raises(ModelFormatError, match=f"got {len(content)} bytes that onnxruntime refuses.*copy it again"):
        open_session(content)
    assert capfd.readouterr() == ("", "")


def test_a_cut_model_is_refused_without_a_log(small, capfd):
    for keep in (100, len(small) // 2):
        with pytest.raises(ModelFormatError, match="truncated or foreign"):
            open_session(small[:keep])
    assert capfd.readouterr() == ("", "")


def test_an_input_that_the_model_cannot_take_is_one_error_without_a_log(small, capfd):
    session = open_session(small)
    with pytest.raises(EmoinvError, match=r"failed on an input of shape features \(1, 10, 7\).*emoinv doctor"):
        run_outputs(session, ["embedding"], {"features": np.zeros((1, 10, 7), np.float32)})
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and reads memory as Linux does")
def test_out_of_memory_is_called_that_without_a_log(tmp_path):
    done = child(
        EMBED
        + """
import resource
from emoinv_edge.errors import EmoinvError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
try:
    run_outputs(session, ["embedding"], {"features": np.zeros((1, 60000, 80), np.float32)})
except EmoinvError as error:
    print(error)
print(len(run_outputs(session, ["embedding"], {"features": features})))
""",
        tmp_path,
    )
    assert re.match("out of memory.*(1, 60000, 80).*shorter", done.stdout)
    assert done.stdout.splitlines()[-1] == "1", "the session is of use afterwards"
    assert done.stderr == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and reads memory as Linux does")
def test_shrinking_gives_the_memory_of_a_long_input_back(tmp_path):
    kept = [
        int(
            child(
                EMBED
                + f"""
def resident():
    import resource
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = resident()
run_outputs(session, ["embedding"], {{"features": np.zeros((1, 3000, 80), np.float32)}}, shrink={shrink})
print(resident() - before)
""",
                tmp_path,
            ).stdout
        )
        for shrink in (False, True)
    ]
    assert kept[1] < 20e6 < kept[0]
