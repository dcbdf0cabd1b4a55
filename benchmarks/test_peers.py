"""Our models against fp32 ResNet34-LM with its kaldi-native-fbank front end: the same clip, in turns, one thread."""

from __future__ import annotations

import numpy as np
import pytest

from .peers import open_workers, take_turns

REFERENCE = "wespeaker"
TARGETS = {"base": 2.5, "small": 12.0}


def test_embedding_three_seconds_beside_resnet34(benchmark, request, model_name, model_path, speech, sizes, tmp_path):
    folder = request.config.getoption("--peers")
    if folder is None:
        pytest.skip("no --peers FOLDER was given; benchmarks/README.md says where the peers come from")
    np.save(tmp_path / "clip.npy", speech(3.0))
    with open_workers([(model_name, model_path)], folder, only=[REFERENCE]) as (workers, skipped):
        if skipped:
            pytest.skip("; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
        times = benchmark.pedantic(take_turns, (workers, tmp_path / "clip.npy", sizes(15, 1)), rounds=1)
        for worker in workers:
            worker.ask(op="embed", clip=str(tmp_path / "clip.npy"), out=str(tmp_path / "row.npy"))
            assert np.isfinite(np.load(tmp_path / "row.npy")).all()
    ratio = times[REFERENCE]["cpu_ms"] / times[model_name]["cpu_ms"]
    benchmark.extra_info.update(
        cpu_ms=times[model_name]["cpu_ms"], resnet34_cpu_ms=times[REFERENCE]["cpu_ms"], ratio=ratio
    )
    if sizes.full and model_name in TARGETS:
        assert ratio >= TARGETS[model_name], f"{ratio:.2f} times faster than ResNet34-LM"
