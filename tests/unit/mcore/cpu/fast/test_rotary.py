"""Rotary positions of ours against Megatron's own, which rotates sequence by sequence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("moe_megatron.mcore")

from megatron.core.models.common.embeddings import rope_utils

from moe_megatron.mcore.cpu import emulation, fast
from moe_megatron.mcore.cpu.fast.rotary import Rotation, positions_of

pytestmark = pytest.mark.skipif(not emulation.is_installed(), reason="Megatron has a GPU")

SIZES, BATCH, HEADS, WIDTH = (5, 1, 11, 3), 2, 3, 12
FORMS = {
    "plain": {},
    "part of the width": {"rotated": 8},
    "scaled": {"mscale": 1.3},
    "interleaved": {"rotary_interleaved": True},
    "latent": {"mla_rotary_interleaved": True},
    "both": {"rotary_interleaved": True, "mla_rotary_interleaved": True},
}


ALONE = dist.ProcessGroup(0, 1)
"""A context group of one."""


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def outcome(compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The result, and the gradient of what is a part of a wider tensor, as queries are."""
    wide = torch.cat((x, x), dim=-1).requires_grad_()
    result = compute(wide[..., : x.shape[-1]])
    result.backward(numbers(*x.shape).to(x.dtype))
    assert wide.grad is not None
    return [result.detach(), wide.grad]


def both(
    compute: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[torch.Tensor], list[torch.Tensor], int]:
    """What comes of ours and of Megatron's, and how often ours were entered."""
    calls = []
    apply = Rotation.apply
    monkeypatch.setattr(Rotation, "apply", lambda *given: calls.append(1) or apply(*given))
    ours = outcome(compute, x)
    monkeypatch.setenv(fast.SWITCH, "rotary")
    before = len(calls)
    theirs = outcome(compute, x)
    assert len(calls) == before
    return ours, theirs, before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_rotation_is_megatrons_to_the_bit(
    form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**FORMS[form]}
    rotated = options.pop("rotated", WIDTH)
    freqs = numbers(max(SIZES), 1, 1, rotated)
    x = numbers(max(SIZES), BATCH, HEADS, WIDTH).to(dtype)

    def compute(t: torch.Tensor) -> Any:
        return rope_utils._apply_rotary_pos_emb_bshd(t, freqs, **options)

    ours, theirs, entered = both(compute, x, monkeypatch)
    assert entered == (form != "both"), "left to Megatron"
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [SIZES, (4,), (1, 1)], ids=str)
def test_packed_sequences_are_rotated_as_megatron_does_one_by_one(
    sizes: tuple[int, ...], form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**FORMS[form]}
    rotated = options.pop("rotated", WIDTH)
    bounds = torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)
    freqs = numbers(max(sizes), 1, 1, rotated)
    x = numbers(sum(sizes), HEADS, WIDTH).to(dtype)

    def compute(t: torch.Tensor) -> Any:
        return rope_utils._apply_rotary_pos_emb_thd(t, bounds, freqs, cp_group=ALONE, **options)

    ours, theirs, entered = both(compute, x, monkeypatch)
    assert entered == (form != "both")
    assert all(map(torch.equal, ours, theirs))


def test_packed_sequences_with_an_angle_for_every_token_take_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Megatron's other form: as many angles as tokens."""
    bounds = torch.tensor([0, 3, 8], dtype=torch.int32)
    freqs, x = numbers(8, 1, 1, WIDTH), numbers(8, HEADS, WIDTH)

    def compute(t: torch.Tensor) -> Any:
        return rope_utils._apply_rotary_pos_emb_thd(t, bounds, freqs, cp_group=ALONE)

    ours, theirs, _ = both(compute, x, monkeypatch)
    assert all(map(torch.equal, ours, theirs))
    whole = rope_utils._apply_rotary_pos_emb_bshd(x.unsqueeze(1), freqs).squeeze(1)
    assert torch.equal(ours[0], whole)


def test_positions_begin_anew_with_every_sequence() -> None:
    bounds = torch.tensor([0, 3, 4, 8], dtype=torch.int32)
    assert positions_of(bounds).tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
