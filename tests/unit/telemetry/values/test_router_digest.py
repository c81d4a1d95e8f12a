"""A digest is of a router's numbers, and says no more and no less than that they are the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.router_digest import check_same_routers, router_digest
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"


def weight() -> torch.Tensor:
    return torch.linspace(-1, 1, 128).view(8, 16)


def test_digest_is_that_of_the_numbers_whatever_they_are_stored_in() -> None:
    whole = weight()
    digest = router_digest(whole, 8)
    assert digest == "7ef5775145f77077", "files keep it: another way to compute it refuses them"
    assert router_digest(whole.bfloat16(), 8) == digest
    assert router_digest(whole.bfloat16().float(), 8) == digest
    assert router_digest(torch.nn.Parameter(whole.T.contiguous().T), 8) == digest


def test_digest_tells_one_weight_an_order_and_a_shape_apart() -> None:
    whole = weight()
    changed, swapped = whole.clone(), whole[[1, 0, *range(2, 8)]]
    changed[5, 7] *= 1.01
    found = {router_digest(it, len(it)) for it in (whole, changed, swapped, whole.view(16, 8))}
    assert len(found) == 4
    assert None not in found


@pytest.mark.parametrize(
    "router",
    [weight().half(), weight().to(torch.int8), weight()[:7], weight().flatten(), weight().double()],
)
def test_router_of_another_kind_has_no_digest(router: torch.Tensor) -> None:
    assert router_digest(router, 8) is None


def test_layers_that_both_know_must_agree() -> None:
    def asked() -> dict[int, str]:
        raise AssertionError("there is nothing to compare")

    check_same_routers({}, asked, "the profile", "a model")
    check_same_routers({1: ONE, 2: ONE}, lambda: {2: ONE, 3: OTHER}, "the profile", "a model")
    with pytest.raises(ConfigError) as caught:
        check_same_routers(
            {1: ONE, 2: ONE, 3: ONE}, lambda: {1: OTHER, 2: ONE, 3: OTHER}, "p.json", "my_model"
        )
    said = str(caught.value)
    assert said.startswith("p.json was counted on other weights than those of my_model: ")
    assert "other routers in layers 1, 3, where" in said
    assert "--counted-on-other-weights" in said
    assert ".of_any_model()" in said


def saved(profile: RoutingProfile, path: Path) -> Any:
    profile.save(path)
    return json.loads(path.read_text())


def test_profile_keeps_digests_and_a_file_without_them_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    profile = RoutingProfile.empty(layers=(2, 3), num_experts=4, top_k=2)
    assert "routers" not in saved(profile, path)
    assert RoutingProfile.load(path).routers == {}
    profile.routers = {2: ONE, 3: OTHER}
    assert saved(profile, path)["routers"] == {"2": ONE, "3": OTHER}
    assert RoutingProfile.load(path).routers == profile.routers
    free = profile.of_any_model()
    assert (free.routers, profile.routers) == ({}, {2: ONE, 3: OTHER})
    free.tokens_per_expert += 1
    assert not profile.tokens_per_expert.any(), "it is a copy"


def test_digests_are_of_the_weights_of_the_last_step(
    make_snapshot: Callable[..., RoutingSnapshot],
) -> None:
    one, other = (RoutingProfile.from_snapshots([make_snapshot(it)]) for it in (1, 2))
    one.routers, other.routers = {1: ONE}, {1: ONE}
    one.merge(other)
    assert one.routers == {1: ONE}
    other.routers = {1: OTHER}
    one.merge(other)
    assert one.routers == {}
    other.add(make_snapshot(3))
    assert other.routers == {}


@pytest.mark.parametrize(
    "routers", [[], {"0": ONE}, {"one": ONE}, {"1": ONE[1:]}, {"1": 5}, {"1": "x" * 16}]
)
def test_damaged_digests_are_refused(routers: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    fields = saved(RoutingProfile.empty(layers=(1,), num_experts=4, top_k=2), path)
    path.write_text(json.dumps({**fields, "routers": routers}))
    with pytest.raises(DataError, match=r"p\.json: routers must "):
        RoutingProfile.load(path)
