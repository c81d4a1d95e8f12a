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
