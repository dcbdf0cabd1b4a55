"""This machine: its processor, the instructions that matter here, memory, and the versions behind a figure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["describe_machine", "installed_version", "processor", "resident_mb", "usable_cores"]

# Instructions that decide how fast int8 and float32 products are.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "neon", "asimd", "asimddp", "i8mm", "sve")
PACKAGES = ("numpy", "onnxruntime", "webrtcvad-wheels")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, set[str]]:
    """The processor's name and its instruction flags; no flags where the system does not list them."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break  # the other cores repeat it
    return name, flags


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed_version(distribution: str) -> str:
    """The installed version of a distribution, or an empty string."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def resident_mb(pid: int | str = "self") -> float | None:
    """Resident memory of a process now, in MB (10^6 bytes); None where the system does not list it."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Processor, architecture, cores, flags, system, load and versions as a JSON object."""
    name, flags = processor(cpuinfo)
    versions = {"python": platform.python_version()}
    versions.update((package, version) for package in PACKAGES if (version := installed_version(package)))
    return {
        "cpu": name,
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }
