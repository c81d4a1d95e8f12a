from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from moe_megatron.analytics import RouterAnalyzer
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.model import MoEModel
from moe_megatron.testing import tiny_models

Make = Callable[..., MoEModel]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "def", "return", "the", "of", "$x$", "(", ")"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_decisions_are_those_of_the_model(make_model: Make, padded: tuple[Tensor, Tensor]) -> None:
    model = make_model()
    ids, mask = padded
    found = RouterAnalyzer(model).analyze_batch({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        output = model(ids, mask)
    assert found.layers == (1, 2, 3)
    assert np.array_equal(found.input_ids, ids)
    assert np.array_equal(found.valid, mask.bool())
    for row, info in enumerate(output.routing):
        assert np.array_equal(found.indices[row], info.indices)
        assert np.array_equal(found.scores[row], info.scores)
    assert found.attention_maps is None


def test_decisions_of_transformers_are_those_of_their_logits(
    foreign: Any, padded: tuple[Tensor, Tensor]
) -> None:
    ids, mask = padded
    found = RouterAnalyzer(foreign).analyze_batch({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        output = foreign(ids, attention_mask=mask, output_router_logits=True)
    assert np.array_equal(found.valid, mask.bool())
    for row, logits in enumerate(output.router_logits):
        scores = logits.reshape(*ids.shape, -1).softmax(-1)
        valid = mask.bool()
        assert np.allclose(found.scores[row][valid], scores[valid], atol=1e-6)
        top = scores.topk(foreign.config.num_experts_per_tok).indices
        assert np.array_equal(found.indices[row][valid], top[valid])
        assert (found.indices[row][~valid] == -1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"num_query_groups": 2},
        {"position_embedding": "learned_absolute", "max_position_embeddings": 8},
    ],
)
def test_attention_maps_of_our_model_reproduce_its_attention(
    make_model: Make, padded: tuple[Tensor, Tensor], options: dict[str, Any]
) -> None:
    model = make_model(**options)
    inputs, outputs = {}, {}

    def keep(layer: Any, args: Any, output: Tensor) -> None:
        inputs[layer.layer], outputs[layer.layer] = args[0], output

    found = RouterAnalyzer(model).analyze_batch(
        {"input_ids": padded[0], "attention_mask": padded[1]}, return_attention_maps=True
    )
    for layer in model.layers:
        layer.attention.register_forward_hook(keep)
    with torch.no_grad():
        model(*padded)
        assert found.attention_maps is not None
        assert len(found.attention_maps) == 3
        for layer, weights in zip(model.layers, found.attention_maps, strict=True):
            attention = layer.attention
            assert np.allclose(weights.sum(-1), 1, atol=1e-5)
            values = attention.v_proj(inputs[attention.layer])
            values = values.view(3, 7, -1, attention.head_dim).transpose(1, 2)
            values = values.repeat_interleave(4 // values.shape[1], dim=1)
            mixed = (torch.tensor(weights) @ values).transpose(1, 2).flatten(2)
            expected = outputs[attention.layer]
            torch.testing.assert_close(attention.o_proj(mixed), expected, atol=1e-5, rtol=1e-4)


def test_attention_maps_of_transformers_are_its_own(tokens: Tensor) -> None:
    model = tiny_models.build("mixtral")
    assert model.config._attn_implementation == "sdpa"
    found = RouterAnalyzer(model).analyze_batch(tokens, return_attention_maps=True)
    assert model.config._attn_implementation == "sdpa"
    assert found.attention_maps is not None
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(tokens, output_attentions=True).attentions
    assert len(found.attention_maps) == len(expected)
    for mine, theirs in zip(found.attention_maps, expected, strict=True):
        assert np.allclose(mine, theirs, atol=1e-6)


def test_the_model_is_left_as_it_was(make_model: Make, tokens: Tensor) -> None:
    model = make_model(hidden_dropout=0.5).train()
    model.layers[1].eval()
    frozen = next(iter(model.parameters())).requires_grad_(False)
    analyzer = RouterAnalyzer(model)
    first, second = analyzer.analyze_batch(tokens), analyzer.analyze_batch(tokens)
    assert np.array_equal(first.scores, second.scores)  # no dropout
    assert model.training
    assert not model.layers[1].training
    assert model.layers[2].training
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def samples(number: int) -> list[dict[str, Any]]:
    """Code uses low ids, prose high ones; lengths differ."""
    rng = np.random.default_rng(0)
    return [
        {
            "input_ids": rng.integers(*((0, 20) if n % 2 else (40, 61)), 3 + n % 9).tolist(),
            "domain": "code" if n % 2 else "prose",
        }
        for n in range(number)
    ]


@pytest.mark.parametrize("kind", ["ours", "mixtral"])
def test_specialization_does_not_depend_on_batches(make_model: Make, kind: str) -> None:
    model = make_model() if kind == "ours" else tiny_models.build("mixtral")
    data = samples(21)
    analyzer = RouterAnalyzer(model)
    found = analyzer.compute_expert_specialization(data, batch_size=8, max_length=7)
    slow = np.zeros_like(found.counts)
    for sample in data:
        one = analyzer.analyze_batch(torch.tensor([sample["input_ids"][:7]]))
        slow[:, found.domains.index(sample["domain"])] += one.tokens_per_expert
    assert found.counts.tolist() == slow.tolist()
    assert found.samples == 21


def test_samples_are_spread_over_a_list_and_taken_first_from_a_stream(make_model: Make) -> None:
    analyzer = RouterAnalyzer(make_model())
    data = sorted(samples(40), key=lambda sample: sample["domain"])
    assert analyzer.compute_expert_specialization(data, num_samples=10).samples == 10
    with pytest.raises(DataError, match="needs at least two, got only 'code'"):
        analyzer.compute_expert_specialization(iter(data), num_samples=10)


def test_text_is_tokenized(
    make_model: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    data = [
        {"text": "def return ( )", "domain": "code"},
        {"text": "the of the", "domain": "prose"},
        {"text": "", "domain": "prose"},
    ]
    found = RouterAnalyzer(make_model(), tokenizer).compute_expert_specialization(data)
    assert found.domains == ("code", "prose")
    assert found.tokens.tolist() == [4, 3]
    with pytest.raises(ConfigError, match="text needs a tokenizer; give RouterAnalyzer one"):
        RouterAnalyzer(make_model()).compute_expert_specialization(data)


def test_texts_are_analyzed_as_their_tokens_are(
    make_model: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model()
    model._tokenizer = tokenizer  # as a model that carries one
    analyzer = RouterAnalyzer(model)
    ids, mask = torch.tensor([[1, 6, 7], [3, 4, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    expected = analyzer.analyze_batch({"input_ids": ids, "attention_mask": mask})
    found = analyzer.analyze_batch(["def ( )", "the of"])
    assert np.array_equal(found.indices, expected.indices)
    one = analyzer.analyze_batch("def ( )")
    assert np.array_equal(one.indices[:, 0], expected.indices[:, 0])
    for empty in ("", ["the", ""], []):
        with pytest.raises(DataError, match="no tokens to analyze; give text that is not empty"):
            analyzer.analyze_batch(empty)
    with pytest.raises(ConfigError, match=r"set model.tokenizer, or pass token ids instead"):
        RouterAnalyzer(make_model()).analyze_batch("def")


@pytest.mark.parametrize("sample", [{}, {"text": "a"}, {"domain": "a", "tokens": [1]}])
def test_samples_without_their_fields_are_refused(make_model: Make, sample: dict[str, Any]) -> None:
    with pytest.raises(DataError, match='needs "domain" and either "input_ids" or "text"; got'):
        RouterAnalyzer(make_model()).compute_expert_specialization([sample])


@pytest.mark.parametrize("dataset", [["text", "domain"], "text", [1, 2]])
def test_samples_that_are_no_mappings_are_refused(make_model: Make, dataset: Any) -> None:
    with pytest.raises(DataError, match=r"a sample is \w+, and must be a mapping .* df.to_dict\("):
        RouterAnalyzer(make_model()).compute_expert_specialization(dataset)


@pytest.mark.parametrize(
    "kind", ["ids", *(pytest.param(it, marks=pytest.mark.deep) for it in ("tensor", "text"))]
)
def test_affinity_plot_is_a_picture(
    make_model: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str
) -> None:
    tokens: Any = {"ids": [1, 5, 3], "tensor": torch.tensor([1, 5, 3]), "text": "def $x$ the"}[kind]
    path = tmp_path / "plots" / "affinity.png"
    analyzer = RouterAnalyzer(make_model(), tokenizer if kind == "text" else None)
    assert analyzer.plot_expert_token_affinity(tokens, path) == path
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 300
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 20


def test_affinity_plot_of_different_tokens_differs(make_model: Make, tmp_path: Path) -> None:
    analyzer = RouterAnalyzer(make_model())
    pictures = [
        analyzer.plot_expert_token_affinity(tokens, tmp_path / f"{n}.png").read_bytes()
        for n, tokens in enumerate(([1, 2, 3], [1, 2, 3], [9, 2, 3]))
    ]
    assert pictures[0] == pictures[1] != pictures[2]


def test_nothing_to_plot_is_said(make_model: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no tokens to plot"):
        RouterAnalyzer(make_model()).plot_expert_token_affinity([], tmp_path / "a.png")
