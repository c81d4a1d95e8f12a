"""What a device could do at best, for the model FLOPs utilisation (MFU)."""

_PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
}
"""Dense bf16 operations per second, in 10^12, from NVIDIA's data sheets; the first name that a
device's name contains holds."""


def peak_tflops(device_name: str) -> float | None:
    """Peak of a device by its name, in 10^12 bf16 operations per second; None when not known."""
    return next((peak for name, peak in _PEAK_TFLOPS.items() if name in device_name), None)
