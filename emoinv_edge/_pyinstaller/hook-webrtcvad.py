"""webrtcvad reads its own version when it is imported; the distribution is webrtcvad-wheels, webrtcvad's fork."""

import importlib.metadata

from PyInstaller.utils.hooks import copy_metadata

datas = []
for distribution in ("webrtcvad-wheels", "webrtcvad"):
    try:
        datas += copy_metadata(distribution)
    except importlib.metadata.PackageNotFoundError:  # the other one is installed
        continue
