"""What is read ahead changes neither results nor what the cache keeps, and costs what is said."""

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.caching import ExpertCache, Prefetch
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.inference.next_router import next_routers
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.reading_ahead import ReadingAhead
from moe_megatron.testing.expert_models import FAMILIES, save_model

IDS = torch.arange(18).view(2, 9)
ALWAYS = Prefetch(window=10_000)


def cache_for(model: OptimizedMoEModel, slots: int, **more: Any) -> ExpertCache:
    cache = ExpertCache((slots + 0.5) * model.store.nbytes / 1e9, **more)
    model.set_expert_cache(cache)
    return cache


def at_once(model: OptimizedMoEModel) -> None:
    """Let what is read ahead be there before anybody asks, whatever the machine does."""
    ahead = model.get_expert_cache()._opened()._ahead
    assert ahead is not None
    start = ahead.start

    def started(*given: Any) -> None:
        start(*given)
        wait([reading for _, reading in ahead._pending.values()])

    ahead.start = started  # type: ignore[method-assign]


@pytest.mark.parametrize("family", FAMILIES)
def test_results_and_the_cache_are_those_without(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path, torch.bfloat16)
    model = OptimizedMoEModel.from_pretrained(tmp_path)
    outcomes = []
    for terms in (None, ALWAYS):
        cache = cache_for(model, 9, policy="lfu", prefetch=terms)
        if terms is not None:
            at_once(model)
        logits = model(IDS).logits
        words = model.generate(IDS[:1], max_new_tokens=12, do_sample=False)
        stats = cache.get_stats()
        counts = stats.hits, stats.misses, stats.evictions, cache.resident()
        outcomes.append((logits, words, counts, stats.prefetch))
    (logits, words, counts, off), (logits_ahead, words_ahead, counts_ahead, on) = outcomes
    assert torch.equal(logits, logits_ahead)
    assert torch.equal(words, words_ahead)
    assert counts == counts_ahead
    assert off is None
    assert on is not None
    assert 0.0 < on.recall <= 1.0
    assert 0 <= on.bytes_wasted < on.bytes_read
    assert on.ended is None
    model.close()


def test_a_router_that_foresees_reads_nothing_in_vain(tmp_path: Path) -> None:
    """Where the next router chooses the same as this one, all that is read ahead is needed."""
    save_model("mixtral", tmp_path)
    model = OptimizedMoEModel.from_pretrained(tmp_path)
    routers = [it for it in model.model.modules() if type(it).__name__ == "MixtralTopKRouter"]
    chosen = torch.tensor([0, 3])
    for it in routers:
        with torch.no_grad():
            it.weight.zero_()

        def forward(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            tokens = hidden.reshape(-1, hidden.shape[-1]).shape[0]
            return hidden, torch.full((tokens, 2), 0.5), chosen.expand(tokens, 2)

        it.forward = forward
    cache = cache_for(model, 6, prefetch=ALWAYS)
    at_once(model)
    model(IDS[:1])
    for number in range(1, 6):
        chosen = torch.tensor([number, number + 1])
        model(IDS[:1])
    stats = cache.get_stats()
    assert stats.prefetch is not None
    assert stats.prefetch.recall == 1.0
    assert stats.prefetch.bytes_wasted == 0
    # In two of three layers, since nobody foresees the first one's.
    assert stats.prefetch.bytes_read == stats.misses * 2 // 3 * model.store.nbytes
    model.close()


def test_hooks_of_routers_see_what_the_model_computes_and_no_more(tmp_path: Path) -> None:
    save_model("olmoe", tmp_path)
    model = OptimizedMoEModel.from_pretrained(tmp_path)
    cache_for(model, 6)
    wanted = model(IDS, output_router_logits=True).router_logits
    cache_for(model, 6, prefetch=ALWAYS)
    found = model(IDS, output_router_logits=True).router_logits
    assert len(found) == len(wanted) == 3
    assert all(map(torch.equal, found, wanted))
    model.close()


def test_what_cannot_be_read_ahead_fails_only_who_needs_it(tmp_path: Path) -> None:
    save_model("olmoe", tmp_path)
    model = OptimizedMoEModel.from_pretrained(tmp_path)
    wanted = model(IDS).logits
    cache_for(model, 6, prefetch=ALWAYS)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    model(IDS)
    file.write_bytes(data[:4096])
    with pytest.raises(CheckpointError, match="cannot be read"):
        model(IDS)
    file.write_bytes(data)
    for _ in range(3):
        assert torch.equal(model(IDS).logits, wanted)
    model.close()


class Slow:
    """Reads that wait until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.done: list[tuple[tuple[int, int], int]] = []

    def __call__(self, key: tuple[int, int], row: int) -> None:
        self.begun.set()
        assert self.go.wait(60)
        self.done.append((key, row))


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def ahead(slow: Slow) -> Iterator[ReadingAhead]:
    made = ReadingAhead(Prefetch(megabytes_per_pass=1), (7, 8), slow, lambda key: 10)
    made.begin_pass()
    yield made
    slow.go.set()
    made.close()


def test_rows_of_reads_that_nobody_wants_are_free_when_they_end(
    ahead: ReadingAhead, slow: Slow
) -> None:
    ahead.start(1, [4, 5], lambda key: False)
    assert slow.begun.wait(60)
    assert ahead.taken(1, [0, 1], [0, 1]) == {}
    # 5 had not begun: withdrawn. 4 is being read into its row, which is nobody's until then.
    assert (ahead.stats().bytes_read, ahead.stats().bytes_wasted) == (10, 10)
    ahead.start(2, [0, 1], lambda key: False)
    (pending,) = [row for row, _ in ahead._pending.values()]
    unwanted = ahead._unwanted[0]
    assert {pending, unwanted[0]} == {7, 8}
    slow.go.set()
    wait([unwanted[1]])
    ahead.begin_pass()
    ahead.start(1, [2, 3], lambda key: False)
    wait([it for _, it in ahead._pending.values()])
    assert set(ahead.taken(1, [2, 3], [2, 3])) == {2, 3}
    assert ahead.stats().recall == 0.5


def test_what_has_not_begun_is_left_to_the_layers_own_reads(
    ahead: ReadingAhead, slow: Slow
) -> None:
    ahead.start(1, [4, 5], lambda key: False)
    assert slow.begun.wait(60)
    assert set(ahead.taken(1, [4, 5], [4, 5])) == {4}
    ahead.give(3)
    slow.go.set()
    assert ahead.stats().bytes_wasted == 0


def test_mistakes_are_answered_in_a_paragraph(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prefetch \(True\) must be Prefetch\(\)"):
        ExpertCache(1.0, prefetch=True)  # type: ignore[arg-type]
    save_model("olmoe", tmp_path)
    model = OptimizedMoEModel.from_pretrained(tmp_path)
    gate = next(it for name, it in model.model.named_modules() if name.endswith("mlp.gate"))
    gate.forward = lambda hidden: hidden
    with pytest.raises(ConfigError, match="does not say which experts it chooses"):
        next_routers(model.model)
    model.close()
