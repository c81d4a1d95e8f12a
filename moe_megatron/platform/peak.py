"""Peak throughput of devices: MFU = model FLOPs per second / peak FLOPs per second."""

_PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
}
"""Dense bf16 TFLOP/s from NVIDIA's data sheets, by a part of the device's name; the first match
counts."""


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 TFLOP/s of a device by its name; None if the device is unknown."""
    return next((peak for name, peak in _PEAK_TFLOPS.items() if name in device_name), None)
