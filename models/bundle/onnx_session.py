"""ONNX graphs at work: what a stranger's may take of the machine, and what it may give."""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from two_tower.models.bundle.onnx_graph import check_graph
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.text.transformer_tokenizer import NOT_HERE
from two_tower.models.vectors import FloatArray, IntArray

MOST_BYTES = 4 * 2**30 + (os.cpu_count() or 1) * 2**27
"""What the graphs of a process take together. A text is read on each core."""

ARENA, LIMIT = "session.use_env_allocators", "max_mem"

PRECISE = "session.x64quantprecision"
"""Without it sums of 8-bit products overflow on x86 without VNNI, and vectors are others there."""

SILENT = 4  # failures are raised; the runtime would print a graph's own words


def open_session(graph: bytes, *, inputs: Sequence[str], outputs: int = 1) -> Any:
    """Open a graph that reads `inputs`, or the first of them, and has so many outputs.

    What it computes stays within `MOST_BYTES`. Nothing is computed yet: the parts that depend on no
    input would be, and outside of that limit.

    Raises:
        BundleError: it is no such graph.
        ConfigError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(NOT_HERE.format(name="onnxruntime")) from None
    check_graph(graph)
    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the threads are spent on texts
    options.log_severity_level = SILENT
    options.add_session_config_entry(ARENA, "1")
    options.add_session_config_entry(PRECISE, "1")
    try:
        session = onnxruntime.InferenceSession(
            graph,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],
        )
    except Exception as error:  # the package's errors have no common class
        raise BundleError(
            f"the transformer's graph cannot be opened ({_reason(error)}); train the bundle again"
        ) from None
    names = [node.name for node in session.get_inputs()]
    if not names or names != list(inputs[: len(names)]) or len(session.get_outputs()) != outputs:
        raise BundleError(
            f"the transformer's graph reads {str(names)[:300]}, expected {list(inputs)}; train the "
            "bundle again"
        )
    return session


def run_session(
    session: Any, names: list[str] | None, inputs: Mapping[str, IntArray]
) -> list[FloatArray]:
    """Return what a graph computes.

    Raises:
        BundleError: it cannot compute it, or a number is not finite.
    """
    try:
        outputs: list[FloatArray] = session.run(names, inputs)
    except Exception as error:  # the package's errors have no common class
        raise BundleError(
            f"the transformer's graph fails ({_reason(error)}); train it again"
        ) from None
    if not all(out.dtype == np.float32 and np.isfinite(out).all() for out in outputs):
        raise BundleError(
            "the transformer's graph gives numbers that are not finite float32; train it again"
        )
    return outputs


@cache
def _limit_memory() -> None:
    """Make the memory that all graphs of this process share."""
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    arena = onnxruntime.OrtArenaCfg({LIMIT: MOST_BYTES})
    onnxruntime.create_and_register_allocator(place, arena)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
