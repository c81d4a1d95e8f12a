"""Peak throughput of devices: MFU = model FLOPs per second / peak FLOPs per second."""

_PEAK_TFLOPS = {
    "bf16": {
        "B200": 2250.0,
        "H200": 989.4,
        "H100 PCIe": 756.0,
        "H100": 989.4,
        "A100": 312.0,
        "L40S": 362.0,
    },
    "fp8": {
        "B200": 4500.0,
        "H200": 1978.9,
        "H100 PCIe": 1513.0,
        "H100": 1978.9,
        "L40S": 733.0,
    },
}
"""Dense TFLOP/s from NVIDIA's data sheets, by precision and a part of the device's name; the first
match counts."""


def peak_tflops(device_name: str, precision: str = "bf16") -> float | None:
    """Dense TFLOP/s of a device by its name.

    Args:
        device_name: As the driver reports it.
        precision: "bf16" or "fp8".

    Returns:
        Peak in 10^12 operations per second; None if it is unknown.
    """
    peaks = _PEAK_TFLOPS.get(precision, {})
    return next((peak for name, peak in peaks.items() if name in device_name), None)
