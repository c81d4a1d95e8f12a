"""Experts come into slots of a device in the right order, whatever is late there."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from moe_megatron.caching import ExpertCache, Prefetch
from moe_megatron.errors import ConfigError
from moe_megatron.inference import expert_cache
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.transfer import CPU, DeviceRows
from moe_megatron.testing.expert_models import save_model

IDS = torch.arange(18).view(2, 9)


class LateCopies:
    """A device whose copies are made when somebody waits for them, and not before.

    Who computes without waiting computes with what was there; who reads into staging memory without
    waiting has the wrong bytes copied.
    """

    device = CPU

    def __init__(self) -> None:
        self._late: dict[int, Callable[[], object]] = {}
        self._numbers = count(1)
        self._one = threading.Lock()
        self.marked: set[int] = set()
        self.after: list[tuple[int, Any]] = []
        """Where copies went, and after what."""

    def staging(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def copy(self, source: Tensor, target: Tensor, after: Any) -> int:
        number = next(self._numbers)
        self._late[number] = partial(target.copy_, source)
        self.after.append((target.data_ptr(), after))
        return number

    def mark(self) -> int:
        number = next(self._numbers)
        self.marked.add(number)
        return number

    def computation_waits(self, event: int) -> None:
        with self._one:
            if event in self._late:
                self._late.pop(event)()

    thread_waits = computation_waits


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> LateCopies:
    copies = LateCopies()

    def rows_on(device: torch.device, rows: int, nbytes: int) -> DeviceRows:
        made = DeviceRows(rows, nbytes, copies)
        made._bytes.zero_()
        return made

    monkeypatch.setattr(expert_cache, "rows_on", rows_on)
    return copies


@pytest.fixture
def model(tmp_path: Path) -> Iterator[OptimizedMoEModel]:
    made = OptimizedMoEModel.from_pretrained(save_model("olmoe", tmp_path, torch.bfloat16))
    yield made
    made.close()


@pytest.mark.parametrize("prefetch", [None, Prefetch(window=10_000)])
@pytest.mark.parametrize("slots", [6, 12, 24])
def test_logits_do_not_depend_on_when_copies_are_made(
    model: OptimizedMoEModel, slots: int, prefetch: Prefetch | None, late: LateCopies
) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(model.store.path, dtype="auto").eval()
    plain.set_experts_implementation("eager")
    with torch.inference_mode():
        whole = plain(IDS).logits
        words = plain.generate(IDS[:1], max_new_tokens=8, do_sample=False)
    gigabytes = (slots + 0.5) * model.store.nbytes / 1e9
    model.set_expert_cache(ExpertCache(gigabytes, prefetch=prefetch))
    for _ in range(2):
        assert torch.equal(model(IDS).logits, whole)
        assert torch.equal(model.generate(IDS[:1], max_new_tokens=8, do_sample=False), words)


def test_a_slot_is_filled_after_its_last_computation(
    model: OptimizedMoEModel, late: LateCopies
) -> None:
    model.set_expert_cache(ExpertCache(6.5 * model.store.nbytes / 1e9))
    for _ in range(3):
        model(IDS[:1, :1])
        model(IDS[:1, 3:4])
    seen = set()
    again = 0
    for place, after in late.after:
        if place in seen:
            again += 1
            assert after in late.marked
        else:
            assert after is None
        seen.add(place)
    assert again > 0


def test_devices_that_are_not_here_are_refused(tmp_path: Path) -> None:
    for device, said in (
        ("cuda:99", "this machine has"),
        ("mps", "must be 'cpu', 'cuda' or 'cuda:0'"),
        ("auto", "must be 'cpu', 'cuda' or 'cuda:0'"),
        (4.5, "must be 'cpu', 'cuda' or 'cuda:0'"),
    ):
        with pytest.raises(ConfigError) as error:
            OptimizedMoEModel.from_pretrained(tmp_path, device_map=device)  # type: ignore[arg-type]
        assert said in str(error.value)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_logits_on_a_gpu_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path)
    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval().cuda()
    whole.set_experts_implementation("eager")
    with torch.inference_mode():
        wanted = whole(IDS.cuda()).logits
    some = OptimizedMoEModel.from_pretrained(tmp_path, device_map="cuda")
    for slots in (2, 5):
        for prefetch in (None, Prefetch(window=10_000)):
            size = (slots * len(some.store.layers) + 0.5) * some.store.nbytes / 1e9
            some.set_expert_cache(ExpertCache(size, prefetch=prefetch))
            for _ in range(20):
                torch.testing.assert_close(some(IDS).logits, wanted)
    some.close()
