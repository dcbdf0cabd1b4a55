"""What another language gets of a model, and that the ports in examples/ give what Python gives."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest

from emoinv_edge.audio import read_audio
from emoinv_edge.calibration import Calibration, Term
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller, utterances
from emoinv_edge.golden import run_golden
from emoinv_edge.verifier import Verifier
from export.__main__ import main
from export.browser import export_browser, kept_scores
from export.chain import Calibrating
from export.portable import PORTABLE_TERMS, profile_values, scores_of, write_wav
from tests.builders import calibrated_encoder, calibration

EXAMPLES = Path(__file__).parent.parent / "examples"
PAGE = EXAMPLES / "browser"


def node_modules(*packages: str) -> Path:
    """The node_modules that holds these packages: $EMOINV_NODE_MODULES, an example's, or one further up."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    named = os.environ.get("EMOINV_NODE_MODULES")
    roots = [Path(named)] if named else [*(EXAMPLES / name / "node_modules" for name in ("browser", "node"))]
    roots += [] if named else [parent / "node_modules" for parent in Path(__file__).resolve().parents]
    for root in roots:
        if all((root / package).is_dir() for package in packages):
            return root
    pytest.skip(f"npm install {' '.join(packages)}, or set EMOINV_NODE_MODULES: they are not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("other") / "model"
    export_browser(Encoder.open("base"), made, report=lambda line: None)
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "vectors" / "vectors.json").read_text())
    return values


def node(*arguments: object, modules: Path) -> subprocess.CompletedProcess[str]:
    command = ["node", *map(str, arguments)]
    environment = {**os.environ, "EMOINV_NODE_MODULES": str(modules)}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


@pytest.fixture(scope="module")
def modules() -> Path:
    return node_modules("onnxruntime-node", "@echogarden/fvad-wasm")


@pytest.fixture(scope="module")
def profile_file(expected: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "ana.json"
    path.write_text(json.dumps(expected["profile"]), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["base", "small"])
def test_every_shipped_model_has_scores_without_pitch(name: str) -> None:
    kept = kept_scores(Encoder.open(name))
    assert set(kept.term_names) <= set(PORTABLE_TERMS)
    assert kept.supported_far <= 0.01
    assert kept.threshold(0.01, 16).llr > kept.threshold(0.01).llr > kept.threshold(0.1).llr


def test_the_files_say_what_their_schemas_demand(folder: Path, expected: dict[str, Any]) -> None:
    values = {"calibration": json.loads((folder / "calibration.json").read_text()), "profile": expected["profile"]}
    for kind, held in values.items():
        schema = json.loads((folder / f"{kind}.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        validator.validate(held)
        for key in held:
            assert not validator.is_valid({name: value for name, value in held.items() if name != key}), key
        assert not validator.is_valid({**held, "foreign": 1})


def test_the_waveform_flavour_is_a_whole_model_and_profiles_are_bound_to_its_source(folder: Path) -> None:
    encoder, source = Encoder(folder / "model.onnx"), Encoder.open("base")
    assert encoder.input == "waveform"
    assert encoder.calibration == kept_scores(source)
    results = run_golden(encoder)
    assert results and all(result.passed for result in results)
    model = json.loads((folder / "calibration.json").read_text())["model"]
    assert model["sha256"] == encoder.file_sha256
    assert model["fingerprint"] == source.fingerprint


def test_the_vectors_are_what_the_verifier_decides(folder: Path, expected: dict[str, Any]) -> None:
    encoder = Encoder(folder / "model.onnx")
    enroller = Enroller(encoder)
    for number in range(1, len(expected["profile"]["exemplars"]) + 1):
        assert enroller.add(read_audio(folder / "vectors" / f"enrol-{number}.wav")[0], 16000).accepted
    verifier = Verifier(encoder, enroller.profile("ana"))
    assert verifier.threshold.llr == pytest.approx(expected["thresholds"]["0.01"])
    refused = 0
    for item in expected["items"]:
        decision = verifier.verify(read_audio(folder / "vectors" / item["file"])[0], 16000)
        if "refusal" in item:
            refused += 1
            assert decision.code == item["refusal"]
        else:
            assert decision.score == pytest.approx(item["llr"], abs=0.01)
            assert decision.accepted == item["file"].startswith("owner")
    assert refused >= 3


def test_profiles_of_the_shipped_file_are_profiles_of_the_port(folder: Path, modules: Path, tmp_path: Path) -> None:
    enroller = Enroller(Encoder.open("base"))
    for number in (1, 2):
        assert enroller.add(read_audio(folder / "vectors" / f"enrol-{number}.wav")[0], 16000).accepted
    path = tmp_path / "ana.json"
    path.write_text(json.dumps(profile_values(enroller.profile("ana"))), encoding="utf-8")
    for name, status in (("owner", 0), ("other", 1)):
        recording = folder / "vectors" / f"{name}.wav"
        done = node(EXAMPLES / "node" / "verify.mjs", folder, path, recording, modules=modules)
        assert done.returncode == status, done.stderr


def test_a_model_that_takes_waveforms_is_not_exported_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a model that takes features"):
        export_browser(Encoder(folder / "model.onnx"), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_model_without_scores_of_its_own_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no calibration without pitch is kept .* --calibrate SET"):
        export_browser(calibrated_encoder(tmp_path), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_score_with_pitch_is_not_handed_to_a_port() -> None:
    with pytest.raises(ValueError, match="f0_above too; calibrate without them"):
        scores_of(calibration(terms=(Term("cosine", 10.0, -1.0, 1.0), Term("f0_above", 1.0, 0.0, 1.0))))


def test_the_command_refuses_terms_that_a_port_does_not_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["browser", "base", "-o", "x", "--calibrate", "set", "--terms", "f0"])
    assert "expected --terms of enrol_seconds" in capsys.readouterr().err


def test_javascript_gives_what_the_vectors_say(folder: Path, modules: Path) -> None:
    done = node(EXAMPLES / "node" / "vectors.mjs", folder, modules=modules)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("LLR") == 4 and "FAIL" not in done.stdout


@pytest.mark.parametrize(("file", "status", "verdict"), [("owner", 0, "ACCEPT"), ("other", 1, "REJECT")])
def test_node_decides_as_python_does(
    folder: Path, profile_file: Path, modules: Path, expected: dict[str, Any], file: str, status: int, verdict: str
) -> None:
    done = node(
        EXAMPLES / "node" / "verify.mjs", folder, profile_file, folder / "vectors" / f"{file}.wav", modules=modules
    )
    assert done.returncode == status, done.stderr
    decision = json.loads(done.stdout)
    assert decision["verdict"] == verdict
    assert decision["llr"] == pytest.approx(llr_of(expected, file), abs=0.05)


def llr_of(expected: dict[str, Any], name: str) -> float:
    return next(float(item["llr"]) for item in expected["items"] if item["file"] == f"{name}.wav")


def changed(profile: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(profile)) | changes


def broken_profiles(profile: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Profiles that no port may score against, each with the reason in Node's words."""
    other = changed(profile)
    other["exemplars"][0]["embedding"] = [2.0 * x for x in other["exemplars"][0]["embedding"]]
    short = changed(profile)
    short["exemplars"][0]["embedding"].pop()
    return [
        (changed(profile, model="0" * 64), "made by another model"),
        (changed(profile, format=2), "expected format 1"),
        (changed(profile, exemplars=[]), "expected exemplars"),
        (other, "unit norm"),
        (short, "256 finite numbers"),
    ]


def test_node_accepts_nothing_that_is_broken(
    folder: Path, profile_file: Path, modules: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    owner = folder / "vectors" / "owner.wav"
    verify = EXAMPLES / "node" / "verify.mjs"
    for values, message in broken_profiles(expected["profile"]):
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        done = node(verify, folder, path, owner, modules=modules)
        assert done.returncode == 3 and message in done.stderr, done.stderr
    for far in ("0", "nan", "0.001", "x"):
        assert node(verify, folder, profile_file, owner, far, modules=modules).returncode == 3, far
    steps = np.tile(np.rint(read_audio(owner)[0] * 32768.0).astype(np.int16), 9)
    write_wav(tmp_path / "long.wav", steps, 16000)
    for name in ("short", "clipped", "silent", "long"):
        recording = (tmp_path if name == "long" else folder / "vectors") / f"{name}.wav"
        done = node(verify, folder, profile_file, recording, modules=modules)
        assert done.returncode == 2 and json.loads(done.stdout)["verdict"] == "NO_DECISION"
    assert node(verify, folder, profile_file, verify, modules=modules).returncode == 3


def test_node_refuses_a_model_that_is_not_the_calibrations(
    folder: Path, profile_file: Path, modules: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    done = node(EXAMPLES / "node" / "verify.mjs", copy, profile_file, folder / "vectors" / "owner.wav", modules=modules)
    assert done.returncode == 3 and "expected the model with SHA-256" in done.stderr


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000, 96000])
def test_the_pages_resampler_keeps_speech_and_no_chunking_shows(rate: int, modules: Path, tmp_path: Path) -> None:
    script = tmp_path / "resample.mjs"
    script.write_text(
        f"""import {{ Resampler }} from {json.dumps((PAGE / "resample.js").as_uri())};
const tone = (hz) => Float32Array.from({{ length: {rate} }}, (_, i) => 0.5 * Math.sin((2 * Math.PI * hz * i) / {rate}));
const run = (x, n) => {{
  const resampler = new Resampler({rate}, 16000);
  const out = [];
  for (let at = 0; at < x.length; at += n) out.push(...resampler.process(x.subarray(at, at + n)));
  return out;
}};
const level = (x) => Math.sqrt(x.slice(800, -800).reduce((sum, y) => sum + y * y, 0) / (x.length - 1600));
const [whole, one, odd] = [{rate}, 1, 441].map((n) => run(tone(1000), n));
const same = (y, i) => Math.abs(y - 0.5 * Math.sin((2 * Math.PI * 1000 * (i + 800)) / 16000));
const error = Math.max(...whole.slice(800, -800).map(same));
console.log(JSON.stringify({{
  length: whole.length, same: String(whole) === String(one) && String(whole) === String(odd), error,
  folded: {rate} > 40000 ? level(run(tone(11000), 128)) : 0,
}}));""",
        encoding="utf-8",
    )
    done = node(script, modules=modules)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["same"]
    assert 15900 <= got["length"] <= 16000
    assert got["error"] < 1e-3
    assert got["folded"] < 1e-3


def onnxruntime_for_cpp() -> tuple[Path, Path]:
    """ONNX Runtime's headers and library: $EMOINV_ORT_INCLUDE and $EMOINV_ORT_LIB, or what is installed.

    The pip package holds a library and no headers; the headers of a release that is not newer than it will do.
    """
    places = [os.environ.get("EMOINV_ORT_INCLUDE"), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    headers = [Path(place) for place in places if place and (Path(place) / "onnxruntime_cxx_api.h").is_file()]
    if not headers:
        pytest.skip(
            "no onnxruntime_cxx_api.h: unpack a release of ONNX Runtime and set EMOINV_ORT_INCLUDE to its headers"
        )
    named = os.environ.get("EMOINV_ORT_LIB")
    installed = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*[0-9]*"))
    libraries = [Path(named)] if named else [path for path in installed if "providers" not in path.name]
    if not libraries:
        pytest.skip("no library of ONNX Runtime to link with: set EMOINV_ORT_LIB")
    return headers[0], libraries[0]


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler is installed")
    return found


@pytest.fixture(scope="module")
def verify_cpp(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The C++ example, built."""
    include, library = onnxruntime_for_cpp()
    folder = tmp_path_factory.mktemp("cpp")
    # The pip package's library asks for itself by its short name.
    version = library.name.partition(".so.")[2].split(".")[0]
    if version:
        (folder / f"libonnxruntime.so.{version}").symlink_to(library)
    out = folder / "verify"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(include)]
    flags += [f"-Wl,-rpath,{folder}", f"-Wl,-rpath,{library.parent}"]
    command = [compiler, *flags, str(EXAMPLES / "cpp" / "verify.cpp"), "-o", str(out), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "json.hpp: No such file" in done.stderr:
        pytest.skip("nlohmann/json is not installed: apt install nlohmann-json3-dev")
    assert done.returncode == 0, done.stderr
    return [str(out)]


def test_the_sha256_of_cpp_is_pythons(compiler: str, tmp_path: Path) -> None:
    """Needs no header of anybody's: it is tried wherever a compiler is."""
    (tmp_path / "main.cpp").write_text(
        '#include <fstream>\n#include <iostream>\n#include <iterator>\n#include "sha256.hpp"\n'
        "int main(int, char** given) {\n"
        "  std::ifstream file(given[1], std::ios::binary);\n"
        "  std::cout << sha256(std::string((std::istreambuf_iterator<char>(file)), {}));\n}\n"
    )
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{EXAMPLES / 'cpp'}"]
    subprocess.run([compiler, *flags, str(tmp_path / "main.cpp"), "-o", str(tmp_path / "main")], check=True)
    for size in (0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 128, 100_000):
        content = bytes(byte * 151 % 256 for byte in range(size))
        (tmp_path / "content").write_bytes(content)
        done = run([str(tmp_path / "main")], tmp_path / "content")
        assert done.stdout == hashlib.sha256(content).hexdigest(), size


def run(command: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def test_cpp_decides_as_python_does_and_accepts_nothing_that_is_broken(
    verify_cpp: list[str], folder: Path, profile_file: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    recordings = folder / "vectors"
    for item in expected["items"]:
        if "llr" in item:
            done = run(verify_cpp, folder, profile_file, recordings / item["speech_file"])
            decision = json.loads(done.stdout)
            assert decision["llr"] == pytest.approx(item["llr"], abs=0.05)
            assert decision["threshold"] == pytest.approx(expected["thresholds"]["0.01"])
            assert done.returncode == (0 if item["file"].startswith("owner") else 1)
        else:
            assert run(verify_cpp, folder, profile_file, recordings / item["file"]).returncode == 2
    owner = recordings / "owner-speech.wav"
    write_wav(tmp_path / "long.wav", np.tile(np.rint(read_audio(owner)[0] * 32768.0).astype(np.int16), 9), 16000)
    assert run(verify_cpp, folder, profile_file, tmp_path / "long.wav").returncode == 2
    for values, _ in broken_profiles(expected["profile"]):
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        assert run(verify_cpp, folder, path, owner).returncode == 2
    for far in ("0", "nan", "0.001", "x"):
        assert run(verify_cpp, folder, profile_file, owner, far).returncode == 2, far


def test_cpp_refuses_a_model_that_is_not_the_calibrations(
    verify_cpp: list[str], folder: Path, profile_file: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    owner = folder / "vectors" / "owner-speech.wav"
    assert run(verify_cpp, copy, profile_file, owner).returncode == 0
    whole = (copy / "model.onnx").read_bytes()
    for broken in (whole + b"\0", whole[:-1], whole[: len(whole) // 2] + b"\0" + whole[len(whole) // 2 + 1 :], b""):
        (copy / "model.onnx").write_bytes(broken)
        done = run(verify_cpp, copy, profile_file, owner)
        assert done.returncode == 2 and "SHA-256" in done.stderr
    (copy / "model.onnx").unlink()
    assert run(verify_cpp, copy, profile_file, owner).returncode == 2
    calibration = json.loads((folder / "calibration.json").read_text())
    (copy / "model.onnx").write_bytes(whole)
    del calibration["model"]["sha256"]
    (copy / "calibration.json").write_text(json.dumps(calibration))
    assert run(verify_cpp, copy, profile_file, owner).returncode == 2


def test_the_examples_are_short() -> None:
    for path in (EXAMPLES / "node" / "verify.mjs", EXAMPLES / "node" / "emoinv.mjs", EXAMPLES / "cpp" / "verify.cpp"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 120


def test_only_pinned_packages_are_asked_for() -> None:
    for name in ("browser", "node"):
        versions = json.loads((EXAMPLES / name / "package.json").read_text())["dependencies"].values()
        assert all(version.replace(".", "").isdigit() for version in versions)
        lock = json.loads((EXAMPLES / name / "package-lock.json").read_text())
        assert all(entry.get("integrity") for path, entry in lock["packages"].items() if path)


def test_scores_that_are_fitted_anew_are_written_beside(tmp_path: Path) -> None:
    class Fitted(Calibrating):
        def calibration(self, encoder: Encoder) -> Calibration:
            return kept_scores(encoder)

    export_browser(Encoder.open("small"), tmp_path, Fitted([]), report=lambda line: None)
    kept = EXAMPLES.parent / "export" / "portable_scores" / "small.json"
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(kept.read_text())


def test_enrolment_in_the_page_refuses_what_python_refuses(folder: Path, modules: Path, tmp_path: Path) -> None:
    owner, first = (read_audio(folder / "vectors" / f"{name}.wav")[0] for name in ("owner", "enrol-1"))
    other = read_audio(EXAMPLES.parent / "emoinv_edge" / "demo" / "clips" / "slt" / "neutral-1.ogg")[0]
    given = {"first": first, "again": first, "other": other, "owner": owner, "mixed": np.concatenate([owner, other])}
    enroller = Enroller(Encoder(folder / "model.onnx"))
    expected = []
    for name, waveform in given.items():
        steps = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
        write_wav(tmp_path / f"{name}.wav", steps, 16000)
        expected.append(enroller.add(steps, 16000).accepted)
    assert expected[:4] == [True, False, False, True]
    script = tmp_path / "enrol.mjs"
    script.write_text(
        f"""import {{ openFolder, readWav }} from {json.dumps((EXAMPLES / "node" / "emoinv.mjs").as_uri())};
import {{ Enroller }} from {json.dumps((PAGE / "enrol.js").as_uri())};
const enroller = new Enroller(await openFolder({json.dumps(str(folder))}));
const out = [];
for (const name of {json.dumps(list(given))}) {{
  const waveform = readWav({json.dumps(str(tmp_path))} + "/" + name + ".wav", 16000);
  out.push((await enroller.add(waveform)).accepted);
}}
console.log(JSON.stringify(out));""",
        encoding="utf-8",
    )
    done = node(script, modules=modules)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("chunk", [160, 683, 16001])
def test_the_page_cuts_the_utterances_that_python_cuts(chunk: int, folder: Path, modules: Path, tmp_path: Path) -> None:
    waveform = read_audio(folder / "vectors" / "owner-pauses.wav")[0]
    waveform = np.concatenate([waveform, np.zeros(20000, np.float32)])
    steps = np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
    write_wav(tmp_path / "stream.wav", steps, 16000)
    samples = steps.astype(np.float32) / 32768
    chunks = [samples[at : at + chunk] for at in range(0, len(samples), chunk)]
    cut = [found for found in utterances(chunks, 16000, lambda level, speech: None) if isinstance(found, np.ndarray)]
    assert len(cut) >= 2
    script = tmp_path / "cut.mjs"
    script.write_text(
        f"""import {{ openFolder, readWav }} from {json.dumps((EXAMPLES / "node" / "emoinv.mjs").as_uri())};
import {{ UtteranceCutter }} from {json.dumps((PAGE / "speech.js").as_uri())};
const {{ fvad }} = await openFolder({json.dumps(str(folder))});
const waveform = readWav({json.dumps(str(tmp_path / "stream.wav"))}, 16000);
const cutter = new UtteranceCutter(fvad);
const out = [];
for (let at = 0; at < waveform.length; at += {chunk}) out.push(...cutter.process(waveform.subarray(at, at + {chunk})));
console.log(JSON.stringify(out.map((x) => [x.length, x[0], x[x.length - 1]])));""",
        encoding="utf-8",
    )
    done = node(script, modules=modules)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[len(x), float(x[0]), float(x[-1])] for x in cut]
