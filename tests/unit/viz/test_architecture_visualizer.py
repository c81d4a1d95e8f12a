"""A drawn model has the parts, parameters and loads of the model."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.analytics import RouterAnalyzer, RouterMonitor
from moe_megatron.architectures import DeepSeekV3, OLMoE
from moe_megatron.config import load_config
from moe_megatron.drawing import ONE_COLUMN, TWO_COLUMNS
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.experts import register_expert
from moe_megatron.viz import ArchitectureVisualizer
from moe_megatron.viz.architecture_parts import (
    blocks_of,
    part_weights,
    shapes_of,
    short,
    total_weights,
)


def texts_of(picture) -> list[str]:
    return [it.get_text() for it in picture.figure.axes[0].texts if it.get_text()]


@pytest.fixture
def model() -> MoEModel:
    torch.manual_seed(0)
    return MoEModel(
        num_layers=3, hidden_size=32, num_experts=4, experts_per_token=2, vocab_size=64,
        layer_frequency=(0, 1, 1), shared_expert_hidden_size=24, shared_expert_gate=True,
        num_attention_heads=4, num_query_groups=2,
    ).eval()  # fmt: skip


def test_parts_have_the_parameters_of_the_model(model):
    weights = part_weights(model.architecture, shapes_of(model.architecture))
    total = total_weights(weights)
    assert total.all == model.num_parameters()
    assert total.active == model.num_parameters(active=True)
    for layer in (2, 3):
        moe = model.layers[layer - 1].moe
        assert weights[layer, "experts"].all == sum(it.numel() for it in moe.experts.parameters())
        assert weights[layer, "router"].all == moe.router.weight.numel()
        attention = sum(it.numel() for it in model.layers[layer - 1].attention.parameters())
        assert weights[layer, "attention"].all == attention
    assert (1, "MLP") in weights
    assert (2, "MLP") not in weights


@pytest.mark.parametrize("cls", [OLMoE, DeepSeekV3])
def test_a_built_model_and_its_configuration_have_the_same_parts(cls):
    built = cls.tiny()
    shapes = {name: tuple(it.shape) for name, it in built.named_parameters()}
    of_table = part_weights(built.architecture, shapes_of(built.architecture))
    assert part_weights(built.architecture, shapes) == of_table


@pytest.mark.parametrize(
    ("preset", "total", "active"),
    [
        ("olmoe_1b_7b", 6.92e9, 1.28e9),
        pytest.param("deepseek_v3", 671e9, 37.6e9, marks=pytest.mark.deep),
    ],
)
def test_published_models_have_their_published_sizes(preset, total, active):
    architecture = load_config(preset).architecture
    found = total_weights(part_weights(architecture, shapes_of(architecture)))
    assert (found.all, found.active) == (
        pytest.approx(total, rel=2e-3),
        pytest.approx(active, 2e-3),
    )


def test_operations_are_two_for_each_parameter_that_a_token_meets(model):
    weights = part_weights(model.architecture, shapes_of(model.architecture))
    by_hooks = 0

    def count(module, inputs, output):
        nonlocal by_hooks
        by_hooks += 2 * module.weight.numel() * inputs[0].numel() // inputs[0].shape[-1]

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    tokens = 12
    model(torch.randint(64, (2, tokens // 2)))
    told = 2 * sum(
        it.multiplied
        for (_, part), it in weights.items()
        if part in {"attention", "MLP", "experts", "shared experts"}
    )
    assert by_hooks // tokens == told


def test_equal_layers_are_drawn_once():
    architecture = load_config("deepseek_v3").architecture
    weights = part_weights(architecture, shapes_of(architecture))
    blocks = blocks_of(architecture, weights, {}, sizes=True, costs=True)
    assert [len(it.layers) for it in blocks] == [0, 3, 58, 0]
    assert blocks[2].layers[-1] == 61
    kinds = [part.kind for part in blocks[2].parts]
    assert kinds == ["attention", "router", "experts", "shared experts"]
    assert blocks[2].parts[2].size == "256, each 2,048 wide"


@pytest.mark.parametrize(
    ("columns", "width"), [(1, ONE_COLUMN), pytest.param(2, TWO_COLUMNS, marks=pytest.mark.deep)]
)
def test_texts_lie_on_the_page_and_beside_each_other(columns, width):
    picture = ArchitectureVisualizer(load_config("deepseek_v3")).plot_architecture(columns=columns)
    figure = picture.figure
    assert figure.get_figwidth() == width
    figure.draw_without_rendering()
    boxes = [it.get_window_extent() for it in figure.axes[0].texts if it.get_text()]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_sizes_and_costs_may_be_left_out(model, tmp_path):
    visualizer = ArchitectureVisualizer(model)
    bare = texts_of(visualizer.plot_architecture(False, False, save_to=tmp_path / "model.svg"))
    assert "attention" in bare
    assert not any("wide" in it or "FLOP" in it for it in bare)
    assert "<svg" in (tmp_path / "model.svg").read_text()
    assert "4 heads of 8, 2 of keys" in texts_of(visualizer.plot_architecture())


def test_experts_are_coloured_by_their_load(model):
    monitor = RouterMonitor(model)
    with monitor.track():
        model(torch.randint(64, (4, 16)))
    profile = monitor.profile()
    picture = ArchitectureVisualizer(model).plot_architecture(
        colormap="expert_utilization", profile=profile
    )
    (mesh,) = picture.figure.axes[0].collections
    drawn = np.ma.filled(mesh.get_array(), 0.0).reshape(2, 4)
    assert drawn == pytest.approx(profile.relative_load)


def test_a_run_knows_its_model_and_loads(make_run_dir: Callable):
    run = make_run_dir(steps=40)
    with pytest.raises(DataError, match=r"has no config.yaml, which says what its model is"):
        ArchitectureVisualizer(run)
    overrides = (
        "base: test_tiny\nmodel: {num_layers: 3}\nmoe: {num_experts: 4, layer_frequency: [0, 1, 1]}"
    )
    (run / "config.yaml").write_text(overrides)
    picture = ArchitectureVisualizer(str(run)).plot_architecture(colormap="expert_utilization")
    (mesh,) = picture.figure.axes[0].collections
    assert np.ma.filled(mesh.get_array(), 0.0).ravel() == pytest.approx(
        [1.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    )


def test_a_graph_joins_experts_that_share_tokens(model, tmp_path):
    ids = torch.randint(64, (20, 50), generator=torch.Generator().manual_seed(0))
    picture = ArchitectureVisualizer(model).plot_expert_graph(
        ids, 3, columns=1, save_to=tmp_path / "graph.pdf"
    )
    lift = RouterAnalyzer(model).analyze_batch(ids).coactivation_lift(3)
    above = int((np.nan_to_num(np.triu(lift)) > 1).sum())
    panel = picture.figure.axes[0]
    assert len(panel.lines) == above
    assert f"Layer 3: {above} of 6 pairs of experts" in picture.figure.get_suptitle()
    assert picture.figure.get_figwidth() == ONE_COLUMN


def test_what_cannot_be_drawn_is_explained(model):
    visualizer = ArchitectureVisualizer(model)
    with pytest.raises(
        ConfigError, match=r"is that of a MoEModel, a run or a configuration.*not 3"
    ):
        ArchitectureVisualizer(3)
    with pytest.raises(ConfigError, match="colormap is 'expert_utilization' or None, not 'hot'"):
        visualizer.plot_architecture(colormap="hot")
    with pytest.raises(ConfigError, match="none is known of this model; give profile="):
        visualizer.plot_architecture(colormap="expert_utilization")
    with pytest.raises(ConfigError, match="spans columns=1 or columns=2 of a page, not 3"):
        visualizer.plot_architecture(columns=3)
    with pytest.raises(ConfigError, match="layout is force_directed or circle, not 'tree'"):
        visualizer.plot_expert_graph("a text", layout="tree")
    with pytest.raises(ConfigError, match="show_specialization is True; give what RouterAnalyzer"):
        visualizer.plot_expert_graph("a text", show_specialization=True)
    with pytest.raises(ConfigError, match="there is none in memory; give ArchitectureVisualizer a"):
        ArchitectureVisualizer(load_config("demo_moe")).plot_expert_graph("a text")
    other = MoEModel(num_layers=1, hidden_size=32, num_experts=2, vocab_size=64)
    monitor = RouterMonitor(other)
    with monitor.track():
        other(torch.randint(64, (1, 4)))
    with pytest.raises(ConfigError, match=r"profile is of layers \(1,\) with 2 experts, and the"):
        visualizer.plot_architecture(colormap="expert_utilization", profile=monitor.profile())


@register_expert("drawn_expert")
class Bottleneck(torch.nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.down = torch.nn.Linear(hidden_size, 3, bias=False)
        self.up = torch.nn.Linear(3, hidden_size)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(rows))


def test_experts_of_another_kind_are_counted_in_the_model():
    model = MoEModel(
        num_layers=1, hidden_size=32, num_experts=4, experts_per_token=2, vocab_size=64,
        expert="drawn_expert",
    )  # fmt: skip
    texts = texts_of(ArchitectureVisualizer(model).plot_architecture())
    assert short(4 * (2 * 3 * 32 + 32)) in texts  # parameters
    assert short(2 * 2 * 2 * 3 * 32) in texts  # operations
    with pytest.raises(
        ConfigError, match="sizes of experts of the kind 'drawn_expert'; give a MoE"
    ):
        ArchitectureVisualizer(load_config({"base": "demo_moe", "moe": {"expert": "drawn_expert"}}))
