"""What a store holds of its device: how the scores were refined here, and which model files decided.

Both decide who is accepted, so both lie in the sealed root, and not in files that anybody in the folder may change.
"""

from __future__ import annotations

import logging
import os
import pathlib
from typing import TYPE_CHECKING

from ..errors import CalibrationError, StoreError
from .file import StoreFile

if TYPE_CHECKING:
    from ..calibration import Calibration
    from ..device_calibration import Refinement
    from ..encoder import Encoder

__all__ = ["Device"]

WAIT_S = 2.0

log = logging.getLogger(__name__)


class Device:
    """The settings of the device that a store belongs to; get it from `ProfileStore.device`."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file

    def refinements(self) -> dict[str, Refinement]:
        """What ``emoinv calibrate`` refined here, by the model's fingerprint.

        Raises
        ------
        CalibrationError
            If one is damaged or of another version: no verification goes on as if it were not there.
        """
        from ..device_calibration import Refinement

        if not self._file.exists():
            return {}
        with self._file.transaction(write=False) as rows:
            values = dict(rows.refinements)
        return {fingerprint: Refinement.from_values(each) for fingerprint, each in values.items()}

    def keep(self, refinement: Refinement) -> None:
        """Keep a refinement in the place of the one of the same model, in one transaction."""
        with self._file.transaction(write=True) as rows:
            rows.refinements[refinement.model_fingerprint] = refinement.to_values()
            rows.note(f"calibrated for model {refinement.model_fingerprint[:12]}")
        self._drop_unsealed()

    def reset(self) -> bool:
        """Go back to the models' own calibrations, all of them; whether there was anything to undo."""
        undone = False
        if self._file.exists():
            with self._file.transaction(write=True) as rows:
                undone = bool(rows.refinements)
                rows.refinements.clear()
                if undone:
                    rows.note("calibration reset")
        return self._drop_unsealed() or undone

    def calibration(self, encoder: Encoder) -> Calibration | None:
        """The encoder's calibration as this device refined it; the model's own where it refined none.

        Raises
        ------
        CalibrationError
            If a refinement cannot be read, lies unsealed beside the store as versions before 1.0 wrote it, or is one
            for another model or another calibration of this one: without it the device might accept more than was
            asked for.
        """
        unsealed = self._unsealed()
        if os.path.lexists(unsealed):
            raise CalibrationError(
                f"{unsealed}: a device's calibration of an older version, which everybody in this folder could have "
                "changed; calibrate again with `emoinv calibrate`, or go back to the model's own with "
                "`emoinv calibrate --reset`; both remove the file"
            )
        found = self.refinements()
        own = encoder.calibration
        if not found or own is None:
            return own
        refinement = found.get(encoder.fingerprint)
        if refinement is None:
            raise CalibrationError(
                f"store {self._file.path}: this device was calibrated for another model ({', '.join(found)[:60]}), and "
                f"{encoder.fingerprint[:12]} is not; calibrate for this one too with `emoinv calibrate --model`, or go "
                "back to the models' own calibrations with `emoinv calibrate --reset`"
            )
        if refinement.file_sha256 != encoder.file_sha256:
            raise CalibrationError(
                f"store {self._file.path}: this device refined the scores of model file {refinement.file_sha256[:12]}, "
                f"and {encoder.file_sha256[:12]} has other scores; calibrate again with `emoinv calibrate`, or go back "
                "to the model's own calibration with `emoinv calibrate --reset`"
            )
        return refinement.apply(own)

    def note_model(self, encoder: Encoder) -> None:
        """Remember the file behind a model, and say so where the last decision was made with another one.

        A store that cannot be written remembers nothing.
        """
        if not self._file.exists():
            return
        with self._file.transaction(write=False, timeout_s=WAIT_S) as rows:
            before = rows.decided.get(encoder.fingerprint)
        if before == encoder.file_sha256:
            return
        if before is not None:
            log.warning(
                "%s: another file than the one that last decided here (SHA-256 %s, before: %s): its embeddings are the "
                "same, its calibration may accept more; compare it with the SHA-256 published for the model",
                encoder.path,
                encoder.file_sha256[:16],
                before[:16],
            )
        try:
            with self._file.transaction(write=True, timeout_s=WAIT_S) as rows:
                rows.decided[encoder.fingerprint] = encoder.file_sha256
                if before is not None:
                    rows.note(f"model {encoder.fingerprint[:12]} from file {encoder.file_sha256[:12]}")
        except StoreError as error:
            log.info("the model's file was not remembered: %s", error)

    def _unsealed(self) -> pathlib.Path:
        """Where versions before 1.0 kept the device's calibration."""
        return self._file.path.with_name(self._file.path.name + ".calibration.json")

    def _drop_unsealed(self) -> bool:
        try:
            self._unsealed().unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreError(f"{self._unsealed()}: cannot be removed ({error.strerror}); remove it yourself") from None
        return True
