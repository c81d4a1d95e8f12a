"""Columns stand below each other."""

from moe_megatron.config.aligned import aligned


def test_columns_are_flush_on_their_side() -> None:
    rows = [("name", "loss"), ("a", "3.25"), ("longer", "-")]
    assert aligned(rows) == ["name    loss", "a       3.25", "longer     -"]
    assert aligned(rows, flush_left=0) == ["  name  loss", "     a  3.25", "longer     -"]
    assert aligned(rows, flush_left=2) == ["name    loss", "a       3.25", "longer  -"]
