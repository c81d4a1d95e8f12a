"""What is computed with never leaves, and what a prompt needs does not throw out the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.policies import make_policy, policies
from moe_megatron.inference.cache.residency import Residency

LAYERS, EXPERTS, TOP_K = 3, 6, 2
REQUESTS = st.lists(st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS), max_size=40)


@pytest.mark.parametrize("name", policies())
@given(requests=REQUESTS, slots=st.integers(LAYERS * TOP_K, LAYERS * EXPERTS))
def test_every_expert_is_in_one_slot_while_it_is_needed(
    name: str, requests: list[set[int]], slots: int
) -> None:
    memory = Residency(slots, LAYERS, TOP_K, make_policy(name, {(0, 1): 2.0, (2, 5): 1.0}))
    inside: dict[int, tuple[int, int]] = {}
    for number, experts in enumerate(requests):
        layer = number % LAYERS
        answer = memory.request(layer, sorted(experts))
        assert {*answer.there, *answer.to_read, *answer.beside} == experts
        for expert, slot in answer.there.items():
            assert inside[slot] == (layer, expert)
        taken = [*answer.there.values(), *answer.to_read.values()]
        assert len(set(taken)) == len(taken)
        assert all(0 <= it < slots for it in taken)
        inside |= {slot: (layer, expert) for expert, slot in answer.to_read.items()}
        assert all((layer, it) not in memory for it in answer.beside)
    tally = memory.tally
    assert tally.hits + tally.misses == sum(map(len, requests))
    assert len(memory) <= slots


def test_a_prompt_does_not_throw_out_what_decoding_needs() -> None:
    memory = Residency(LAYERS * TOP_K, LAYERS, TOP_K, make_policy("lru", {}))
    for layer in range(LAYERS):
        memory.request(layer, [0, 1])
    answer = memory.request(0, range(EXPERTS))
    assert answer.beside == (2, 3, 4, 5)
    assert memory.tally.evictions == 0
    for layer in range(LAYERS):
        assert memory.request(layer, [0, 1]).there.keys() == {0, 1}


def test_who_could_not_be_read_is_not_there() -> None:
    memory = Residency(LAYERS * TOP_K, LAYERS, TOP_K, make_policy("lru", {}))
    memory.request(0, [3])
    memory.forget((0, 3))
    assert (0, 3) not in memory
    assert memory.request(0, [3]).to_read.keys() == {3}


def test_too_few_slots_are_refused_with_the_least() -> None:
    with pytest.raises(
        ConfigError, match=r"a cache for 5 experts is too small.*give it room for 6"
    ):
        Residency(5, LAYERS, TOP_K, make_policy("lru", {}))
