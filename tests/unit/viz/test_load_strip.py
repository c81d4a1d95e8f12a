import base64
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moe_megatron.viz.load_strip import bin_experts, load_levels, load_strips
from moe_megatron.viz.report_data import load_report_data


def test_load_levels_are_logarithmic_and_clipped() -> None:
    relative = np.array([0.0, 1 / 8, 1 / 2, 1.0, 2.0, 8.0, 100.0, math.nan])
    assert load_levels(relative).tolist() == [0, 0, 85, 127, 169, 254, 254, 255]


def test_bin_experts_averages_neighbours() -> None:
    assert bin_experts(np.arange(4.0), max_rows=4).tolist() == [0, 1, 2, 3]
    assert bin_experts(np.arange(5.0), max_rows=2).tolist() == [1, 3.5]
    wide = np.random.default_rng(0).random((3, 256))
    np.testing.assert_allclose(bin_experts(wide), wide.reshape(3, 64, 4).mean(-1))


def test_strips_hold_every_cell(make_run_dir: Callable[..., Path]) -> None:
    routing = load_report_data(make_run_dir(40)).routing
    assert routing is not None
    strips = load_strips(list(routing.columns))
    assert len(strips) == 2
    script = ET.fromstring(strips[0]).find("script")
    assert script is not None
    assert script.text is not None
    data = json.loads(script.text)
    cells = np.frombuffer(base64.b64decode(data["levels"]), dtype=np.uint8).reshape(40, 4)
    assert data["steps"][0] == [1, 1]
    assert cells[0].tolist() == [127] * 4
    assert cells[-1].tolist() == [169, 0, 127, 127]
