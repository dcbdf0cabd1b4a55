"""ONNX Runtime: imported without its telemetry, opened quietly, run within a bound of memory.

ONNX Runtime 1.29 and later write a device id below the user's cache folder and send events to
their maker. They ask the environment once, when the library is loaded, so the variable is set
before; everything in this project that needs ONNX Runtime comes here for it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import EmoinvError, ModelFormatError, OutOfMemoryError
from .forks import FORKS

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["import_onnxruntime", "open_session", "run_outputs"]

# What ONNX Runtime's allocators say, and the C++ library's exception, when there is no more memory.
_OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


def import_onnxruntime() -> Any:
    """The module onnxruntime, with its telemetry off, in this process and in those it starts.

    Where the application has imported onnxruntime before, only the sending of events can be
    stopped; set ORT_DISABLE_TELEMETRY=1 before that import to stop its files as well.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def open_session(
    content: bytes, num_threads: int = 1, *, optimise: bool = True, config: Mapping[str, str] | None = None
) -> InferenceSession:
    """Open a model on the CPU.

    Parameters
    ----------
    content : bytes
        An ONNX file.
    num_threads : int
        Threads of one inference.
    optimise : bool
        False runs the graph node by node as written.
    config : mapping of str to str, optional
        Further session configuration entries of ONNX Runtime.

    Raises
    ------
    ModelFormatError
        If ONNX Runtime refuses the model. The message does not name the file.
    OutOfMemoryError
        If there is not memory enough.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread drains a battery
    options.log_severity_level = 4  # every error is raised as well, and named by what we raise
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        if _is_out_of_memory(error):
            raise OutOfMemoryError(
                f"out of memory while opening a model of {len(content)} bytes; "
                "free some memory, or take the small model"
            ) from error
        raise ModelFormatError(
            f"expected an ONNX model, got {len(content)} bytes that onnxruntime refuses ({_line(error)}); "
            "the file is truncated or foreign: copy it again, or install emoinv-edge again"
        ) from error


def run_outputs(
    session: InferenceSession, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.float32]], *, shrink: bool = False
) -> list[NDArray[np.float32]]:
    """Outputs of one run of a session, which may be shared between threads.

    Parameters
    ----------
    session : InferenceSession
    outputs : sequence of str
    feeds : mapping of str to ndarray
        The inputs by name.
    shrink : bool
        Give the memory of the run back to the system after it: for long inputs, as it takes about
        a tenth longer. Without it ONNX Runtime keeps what its longest input so far needed.

    Raises
    ------
    OutOfMemoryError
        If there is not memory enough.
    EmoinvError
        If the model fails on this input.
    """
    options = None
    if shrink:
        options = import_onnxruntime().RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    try:
        with FORKS.kept_off():
            results = session.run(list(outputs), dict(feeds), options)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
        if _is_out_of_memory(error):
            raise OutOfMemoryError(
                f"out of memory: the model needs more than there is for an input of shape {shapes}; "
                "give it shorter recordings, free some memory, or take the small model"
            ) from error
        raise EmoinvError(
            f"the model failed on an input of shape {shapes} ({_line(error)}); "
            "check the model file with `emoinv doctor`"
        ) from error
    if shrink:
        _trim()
    return [np.asarray(result, np.float32) for result in results]


def _trim() -> None:
    """Have the C library give freed memory back to the system, where it is glibc, which keeps it otherwise."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.lru_cache(maxsize=1)
def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    except OSError:  # a program that is linked statically
        return None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
