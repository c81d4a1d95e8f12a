"""The ways of tokens are those that the model itself takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.analytics import RouterAnalyzer
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.model import MoEModel
from moe_megatron.text.training import train_tokenizer

Make = Callable[..., MoEModel]
TEXT = "def mean(values): <img src=x onerror=alert(1)>\n  return the mean of values"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([TEXT, "the quick brown fox"] * 4, folder, vocab_size=280)
    return folder


@pytest.mark.parametrize("options", [{}, {"router_type": "top_p"}, {"capacity_factor": 0.6}])
def test_paths_are_those_of_the_model(make_model: Make, tokenizer: Path, options: Any) -> None:
    model = make_model(vocab_size=300, **options)
    model.tokenizer = tokenizer
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter *= 10  # an untrained router has hardly any preference
    found = RouterAnalyzer(model).token_paths(TEXT)
    ids = model.tokenizer.encode(TEXT)
    assert "".join(found.tokens) == TEXT
    assert len(found.tokens) == len(ids)
    with torch.no_grad():
        output = model(torch.tensor([ids]))
    assert found.layers == (1, 2, 3)
    numbers = set()
    for layer, info in enumerate(output.routing):
        for token in range(len(ids)):
            chosen = [it for it in info.indices[0, token].tolist() if it >= 0]
            assert list(found.experts[layer][token]) == chosen
            numbers.add(len(chosen))
            weights = info.weights[0, token, : len(chosen)]
            assert found.weights[layer][token] == pytest.approx(weights.tolist(), abs=1e-6)
    if options.get("router_type") == "top_p":
        assert len(numbers) > 1
    if "capacity_factor" in options:
        assert any(it == 0 for layer in found.weights for token in layer for it in token)
    assert found.to_json()["weights"][0][0] == pytest.approx(found.weights[0][0], rel=1e-5)


def test_texts_that_cannot_be_followed_are_refused(make_model: Make, tokenizer: Path) -> None:
    model = make_model(vocab_size=300)
    with pytest.raises(ConfigError, match="text needs a tokenizer"):
        RouterAnalyzer(model).token_paths(TEXT)
    model.tokenizer = tokenizer
    analyzer = RouterAnalyzer(model)
    with pytest.raises(DataError, match="no tokens to follow"):
        analyzer.token_paths("")
    length = len(model.tokenizer.encode(TEXT))
    assert len(analyzer.token_paths(TEXT, most_tokens=length).tokens) == length
    with pytest.raises(DataError, match=f"has {length} tokens, and at most {length - 1} are"):
        analyzer.token_paths(TEXT, most_tokens=length - 1)
