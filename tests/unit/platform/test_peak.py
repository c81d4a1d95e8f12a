"""Peak operations by the names that drivers report."""

import pytest

from moe_megatron.platform.peak import peak_tflops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("cpu", None),
        ("Some New GPU", None),
    ],
)
def test_peak_is_that_of_the_data_sheet(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 1978.9),
        ("NVIDIA H100 80GB HBM3", 1978.9),
        ("NVIDIA H100 PCIe", 1513.0),
        ("NVIDIA A100-SXM4-80GB", None),
        ("cpu", None),
    ],
)
def test_fp8_has_a_peak_where_the_device_has_fp8(name: str, peak: float | None) -> None:
    assert peak_tflops(name, "fp8") == peak


def test_precision_without_a_data_sheet_has_no_peak() -> None:
    assert peak_tflops("NVIDIA H200", "fp32") is None
