"""What a runtime in another language needs of a model: the calibration as plain JSON, test vectors, and their schemas.

A port embeds with the waveform flavour and scores without pitch: the cosine, the seconds, the norm and the emotion
axis need nothing but the embeddings and the length of the speech. The thresholds are fitted for that score, on speech
that went through this library's own detector.
"""

from __future__ import annotations

import dataclasses
import json
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration, EmotionAxis, FarTable, Term
from emoinv_edge.clips import SAME_SPEAKER_PRIOR
from emoinv_edge.encoder import LONGEST_S, MIN_FRAMES, Encoder
from emoinv_edge.enrolment import (
    DUPLICATE_COSINE,
    MAX_UTTERANCES,
    MIN_ENROL_SNR_DB,
    MIN_PROFILE_S,
    MIN_UTTERANCE_S,
    TARGET_S,
    TARGET_UTTERANCES,
    Enroller,
)
from emoinv_edge.profiles import Profile
from emoinv_edge.quality import CLIP_LEVEL
from emoinv_edge.scoring import ProfileBank
from emoinv_edge.spec import EncoderSpec
from emoinv_edge.utterance import MAX_CLIPPED_FRACTION, MIN_LEVEL_DBFS, MIN_SNR_DB, MIN_SPEECH_S, hear
from emoinv_edge.vad import SpeechSegmenter

__all__ = [
    "PORTABLE_FORMAT",
    "PORTABLE_GROUPS",
    "PROFILE_FORMAT",
    "calibration_of_values",
    "calibration_values",
    "profile_values",
    "scores_of",
    "vectors",
    "write_wav",
]

PORTABLE_FORMAT = 1
PROFILE_FORMAT = 1
# Groups of terms (`train.calibration.weights.GROUPS`) that need no pitch and no spectrum.
PORTABLE_GROUPS = ("enrol_seconds", "norm", "test_seconds", "emotion_shift")
PORTABLE_TERMS = ("cosine", "enrol_seconds", "norm_above", "norm_below", "test_seconds", "emotion_shift")


def scores_of(calibration: Calibration) -> dict[str, Any]:
    """The calibration as plain JSON values, the emotion axis as numbers.

    Raises
    ------
    ValueError
        If it weighs a term that a port does not measure.
    """
    foreign = set(calibration.term_names) - set(PORTABLE_TERMS)
    if foreign:
        raise ValueError(
            f"expected terms of {', '.join(PORTABLE_TERMS)}, got {', '.join(sorted(foreign))} too; "
            "calibrate without them: --terms " + " ".join(PORTABLE_GROUPS)
        )
    axis = calibration.emotion_axis
    return {
        "bias": calibration.bias,
        "terms": [dataclasses.asdict(term) for term in calibration.terms],
        "emotion_axis": None if axis is None else _numbers(axis.array()),
        "far_tables": [
            {"num_profiles": table.num_profiles, "rates": list(table.rates), "thresholds": list(table.thresholds)}
            for table in calibration.far_tables
        ],
        "num_impostor_speakers": calibration.num_impostor_speakers,
        "source": calibration.source,
    }


def calibration_of_values(values: Mapping[str, Any]) -> Calibration:
    """The calibration behind `scores_of`."""
    axis = values["emotion_axis"]
    return Calibration(
        values["bias"],
        tuple(Term(**term) for term in values["terms"]),
        tuple(
            FarTable(table["num_profiles"], tuple(table["rates"]), tuple(table["thresholds"]))
            for table in values["far_tables"]
        ),
        values["num_impostor_speakers"],
        values["source"],
        None if axis is None else EmotionAxis(np.array(axis, "<f4").tobytes()),
    )


def calibration_values(encoder: Encoder, fingerprint: str) -> dict[str, Any]:
    """The values of ``calibration.json`` for a model of the waveform flavour that holds such a calibration.

    Parameters
    ----------
    encoder : Encoder
        Of the waveform flavour.
    fingerprint : str
        What profiles are bound to: that of the model file that the flavour was made of.
    """
    assert encoder.calibration is not None  # `export.browser` wrote it
    return {
        "format": PORTABLE_FORMAT,
        "model": _model(encoder, fingerprint),
        **scores_of(encoder.calibration),
        "supported_far": encoder.calibration.supported_far,
        "refuse": {
            "least_speech_s": MIN_SPEECH_S,
            "most_speech_s": LONGEST_S,  # Python embeds more in windows
            "least_snr_db": MIN_SNR_DB,
            "least_level_dbfs": MIN_LEVEL_DBFS,
            "most_clipped": MAX_CLIPPED_FRACTION,
            "clip_level": CLIP_LEVEL,
        },
        "enrol": {
            "least_speech_s": MIN_UTTERANCE_S,
            "least_snr_db": MIN_ENROL_SNR_DB,
            "least_profile_s": MIN_PROFILE_S,
            "target_s": TARGET_S,
            "target_utterances": TARGET_UTTERANCES,
            "most_utterances": MAX_UTTERANCES,
            "duplicate_cosine": DUPLICATE_COSINE,
            "same_speaker_prior": SAME_SPEAKER_PRIOR,
        },
    }


def _model(encoder: Encoder, fingerprint: str) -> dict[str, Any]:
    spec: EncoderSpec = encoder.spec
    return {
        "name": spec.name,
        "file": encoder.path.name,
        "sha256": encoder.file_sha256,
        "fingerprint": fingerprint,
        "input": "waveform",
        "output": "embedding",
        "sample_rate": spec.sample_rate,
        "least_samples": spec.frame_length + (MIN_FRAMES - 1) * spec.frame_shift,
        "embedding_dim": spec.embedding_dim,
    }


def profile_values(profile: Profile, fingerprint: str | None = None) -> dict[str, Any]:
    """A profile as the plain JSON that a port reads: embeddings, seconds and norms; unencrypted biometric data.

    Parameters
    ----------
    profile : Profile
    fingerprint : str, optional
        Instead of the profile's own, for one that was enrolled with the waveform flavour.
    """
    return {
        "format": PROFILE_FORMAT,
        "name": profile.name,
        "model": fingerprint or profile.model_fingerprint,
        "exemplars": [
            {
                "embedding": _numbers(exemplar.embedding),
                "seconds": exemplar.quality.net_speech_s,
                "log_norm": exemplar.quality.log_embedding_norm,
            }
            for exemplar in profile.exemplars
        ],
    }


def _numbers(vector: NDArray[np.float32]) -> list[float]:
    """Shortest decimal numbers that give these float32 values back."""
    return [float(str(value)) for value in vector]


def write_wav(path: Path, samples: NDArray[np.int16], sample_rate: int) -> None:
    """Write 16-bit mono PCM."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())


def vectors(
    encoder: Encoder,
    fingerprint: str,
    enrol: Sequence[NDArray[np.int16]],
    tests: Mapping[str, NDArray[np.int16]],
    folder: Path,
) -> dict[str, Any]:
    """Test vectors of a port: recordings in `folder`, and the values of ``vectors.json`` that it must give for them.

    Parameters
    ----------
    encoder : Encoder
        Of the waveform flavour, with its calibration.
    fingerprint : str
        As for `calibration_values`.
    enrol : sequence of ndarray, int16, at the encoder's rate
        Utterances of one speaker, for the profile.
    tests : mapping from name to ndarray, int16
        Each is written as ``NAME.wav``, and its speech as ``NAME-speech.wav``.
    folder : Path
        Is there.

    Raises
    ------
    ValueError
        If an utterance is refused.
    """
    assert encoder.calibration is not None  # as for `calibration_values`
    rate = encoder.spec.sample_rate
    enroller = Enroller(encoder)
    for number, samples in enumerate(enrol, 1):
        write_wav(folder / f"enrol-{number}.wav", samples, rate)
        answer = enroller.add(samples, rate)
        if not answer.accepted:
            raise ValueError(f"enrol-{number}: expected speech that can be enrolled, got: {answer.message}")
    profile = enroller.profile("ana")
    bank = ProfileBank([profile], encoder.calibration.emotion_axis)
    items = []
    for name, samples in tests.items():
        write_wav(folder / f"{name}.wav", samples, rate)
        heard = hear(encoder, samples, rate)
        item: dict[str, Any] = {"file": f"{name}.wav", "segments": _segments(samples, rate)}
        if heard.quality is not None:
            item |= {
                "speech_s": heard.quality.net_speech_s,
                "snr_db": heard.quality.snr_db,
                "level_dbfs": heard.quality.level_dbfs,
                "clipped_fraction": heard.quality.clipped_fraction,
            }
        if heard.refusal is not None:
            item["refusal"] = heard.refusal.code
        else:
            assert heard.embedding is not None and heard.quality is not None  # there was no refusal
            speech = np.clip(np.rint(heard.speech * 32768.0), -32768, 32767).astype(np.int16)
            write_wav(folder / f"{name}-speech.wav", speech, rate)
            evidence = bank.evidence(heard.embedding.vector, heard.quality, encoder.calibration.term_names)
            item |= {
                "speech_file": f"{name}-speech.wav",
                "embedding": _numbers(heard.embedding.vector),
                "norm": heard.embedding.norm,
                "evidence": {term: float(evidence[term][0]) for term in encoder.calibration.term_names},
                "llr": float(bank.score(encoder.calibration, heard.embedding.vector, heard.quality)[0][0]),
            }
        items.append(item)
    thresholds = {
        f"{far:g}": encoder.calibration.threshold(far).llr
        for far in (0.1, 0.03, 0.01)
        if far >= encoder.calibration.supported_far
    }
    return {
        "format": PORTABLE_FORMAT,
        "tolerance_llr": 0.05,
        "profile": profile_values(profile, fingerprint),
        "thresholds": thresholds,
        "items": items,
    }


def _segments(samples: NDArray[np.int16], sample_rate: int) -> list[list[int]]:
    segmenter = SpeechSegmenter(sample_rate)
    found = segmenter.process(samples) + segmenter.flush()
    return [[segment.start, segment.end] for segment in found]


def dump(values: Any) -> str:
    """JSON with a line for each value of the first two levels, short arrays of numbers on one line."""
    return json.dumps(values, indent=1, allow_nan=False) + "\n"
