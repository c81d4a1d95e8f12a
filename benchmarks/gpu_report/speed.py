"""From the time of a step to operations per second and the share of what the device could do."""

from typing import Any


def speed(
    *, step_seconds: float, tokens: int, flops_per_token: float | None, peak_tflops: float | None
) -> dict[str, Any]:
    """Numbers of a step.

    Args:
        step_seconds: Its time.
        tokens: In it, over all processes.
        flops_per_token: Operations of the model, forward and backward, without recomputation.
        peak_tflops: 10^12 operations per second that all devices could do; None: not known.

    Returns:
        "step_ms", "tokens_per_second", and where they can be known "model_tflops" (10^12 operations
        per second) and "mfu" (ratio), else None.
    """
    per_second = tokens / step_seconds
    tflops = None if flops_per_token is None else per_second * flops_per_token / 1e12
    return {
        "step_ms": 1e3 * step_seconds,
        "tokens_per_second": per_second,
        "model_tflops": tflops,
        "mfu": None if tflops is None or peak_tflops is None else tflops / peak_tflops,
    }
