"""Requests that are computed together get what each would get alone."""

import queue
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_megatron.errors import CheckpointError
from moe_megatron.serving.asked import Asked, Event, Failed, Finished, Sampling, Token
from moe_megatron.serving.batch_engine import Engine, QueueFullError
from moe_megatron.serving.routing_counts import RoutingCounts
from moe_megatron.testing.expert_models import save_model

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11], [12], [1, 2, 3, 4]]
WORDS = 8


class Watch:
    """Notes the steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def step(self, requests: int, tokens: int) -> None:
        self.steps.append(requests)

    def token(self, seconds: float, *, first: bool) -> None:
        pass

    def prompt(self, tokens: int) -> None:
        pass


Make = Callable[..., Engine]


@pytest.fixture
def model(tmp_path: Path) -> Any:
    folder = save_model("mixtral", tmp_path)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


@pytest.fixture
def make(model: Any) -> Iterator[Make]:
    made: list[Engine] = []

    def build(**more: Any) -> Engine:
        options = {"ends": [], "context": 48, "batch": 4, "queue": 8, "watches": Watch(), **more}
        made.append(Engine(model, **options))
        return made[-1]

    yield build
    for it in made:
        it.close()


def together(engine: Engine, asked: Sequence[Asked]) -> list[list[Event]]:
    """What each gets when all are asked for at once."""
    came: queue.Queue[tuple[int, Event]] = queue.Queue()
    for index, it in enumerate(asked):
        engine.submit(it, lambda event, index=index: came.put((index, event)))
    found: list[list[Event]] = [[] for _ in asked]
    left = len(asked)
    while left:
        index, event = came.get(timeout=60)
        found[index].append(event)
        left -= not isinstance(event, Token)
    return found


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [it.token for it in events if isinstance(it, Token)]


def greedy(**more: Any) -> list[Asked]:
    return [Asked(prompt=it, max_tokens=WORDS, **more) for it in PROMPTS]


def alone(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    more = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    with torch.inference_mode():
        words = model.generate(ids, max_new_tokens=WORDS, do_sample=False, **more)
    found: list[int] = words[0, len(prompt) :].tolist()
    return found


def test_texts_are_those_of_generate_and_steps_hold_several_requests(
    model: Any, make: Make
) -> None:
    wanted = [alone(model, it) for it in PROMPTS]
    watch = Watch()
    found = together(make(watches=watch), greedy())
    assert [tokens_of(it) for it in found] == wanted
    assert all(it[-1] == Finished("length") for it in found)
    assert max(watch.steps) == 4


def test_a_token_that_ends_texts_ends_one(model: Any, make: Make) -> None:
    words = alone(model, PROMPTS[0])
    (found,) = together(make(ends=[words[2]]), greedy()[:1])
    assert tokens_of(found) == words[: words.index(words[2]) + 1]
    assert found[-1] == Finished("stop")


def test_a_seed_decides_the_text_whoever_else_is_there(make: Make) -> None:
    engine = make()
    dice = Sampling(temperature=1.5, top_p=0.95, seed=7)
    mine = Asked(prompt=PROMPTS[0], max_tokens=WORDS, sampling=dice)
    other = Asked(prompt=PROMPTS[2], max_tokens=WORDS, sampling=Sampling(temperature=2.0))
    (first,) = together(engine, [mine])
    assert tokens_of(together(engine, [other, mine, other])[1]) == tokens_of(first)


def test_logprobs_are_those_of_the_model(model: Any, make: Make) -> None:
    (found,) = together(make(), greedy(sampling=Sampling(logprobs=2))[:1])
    told = found[0]
    assert isinstance(told, Token)
    with torch.inference_mode():
        wanted = model(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    assert told.logprob == pytest.approx(float(wanted.max()), abs=1e-5)
    assert [it.logprob for it in told.most_probable] == pytest.approx(
        wanted.topk(2).values.tolist(), abs=1e-5
    )


def test_as_many_wait_as_may_and_a_cancelled_one_makes_room(make: Make) -> None:
    engine = make(batch=1, queue=1)
    long = Asked(prompt=[1], max_tokens=40)
    names = [engine.submit(long, lambda event: None) for _ in range(2)]
    with pytest.raises(QueueFullError):
        engine.submit(long, lambda event: None)
    for name in names:
        engine.cancel(name)
    assert engine.running == 0
    (found,) = together(engine, [Asked(prompt=[1], max_tokens=2)])
    assert len(tokens_of(found)) == 2


def test_a_request_that_cannot_be_computed_fails_alone(model: Any, make: Make) -> None:
    wanted = [alone(model, it) for it in PROMPTS[:3]]

    def lost(module: Any, given: Any, more: Any) -> None:
        if (more["input_ids"] == 99).any():
            raise CheckpointError("experts.safetensors is gone.")

    model.register_forward_pre_hook(lost, with_kwargs=True)
    engine = make()
    asked = [*greedy()[:3], Asked(prompt=[5, 99], max_tokens=4)]
    found = together(engine, asked)
    assert found[3] == [Failed("experts.safetensors is gone.")]
    assert [tokens_of(it) for it in found[:3]] == wanted
    assert engine.alive
    assert [tokens_of(it) for it in together(engine, greedy()[:3])] == wanted


def test_a_bug_is_not_told_to_clients(model: Any, make: Make) -> None:
    def lost(module: Any, given: Any, more: Any) -> None:
        raise ZeroDivisionError("secret")

    model.register_forward_pre_hook(lost, with_kwargs=True)
    ((event,),) = together(make(), greedy()[:1])
    assert isinstance(event, Failed)
    assert "secret" not in event.problem


def test_experts_are_counted_for_each_served_token(model: Any, make: Make) -> None:
    counts = RoutingCounts(model)
    together(make(), greedy())
    computed = sum(map(len, PROMPTS)) + len(PROMPTS) * (WORDS - 1)
    assert counts.layers == [1, 2, 3]
    assert counts.table().sum(1).tolist() == [2 * computed] * 3
