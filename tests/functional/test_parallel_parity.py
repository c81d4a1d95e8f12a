"""The same model gives the same losses under every parallel layout, and moves between them.

Plain Megatron, with none of our accelerators, is one more layout.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.checkpoint.convert import Execution, export_checkpoint
from moe_megatron.checkpoint.routers import routers_of
from moe_megatron.errors import ConfigError
from moe_megatron.inference.store.opening import open_store
from moe_megatron.inference.usage import counts_of
from moe_megatron.mcore.cpu.fast import SWITCH
from moe_megatron.telemetry.sinks.jsonl import (
    ROUTING_FILE,
    read_routing,
)
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.testing.jobs import Job, few_steps, run_jobs, step_records

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

SEED_STEPS = 2
STEPS = SEED_STEPS + 5
SHAPE: dict[str, Any] = {
    "model.num_layers": 4,
    **few_steps(12, micro_batch=4),
}
TWO: dict[str, dict[str, Any]] = {
    "tp2": {"parallel.tensor_parallel_size": 2},
    "pp2": {"parallel.pipeline_parallel_size": 2},
    "vpp2": {"parallel.pipeline_parallel_size": 2, "parallel.virtual_pipeline_stages": 2},
    "uneven_pp2": {
        "parallel.pipeline_parallel_size": 2,
        "megatron.decoder-first-pipeline-num-layers": 1,
    },
    "ep2": {"parallel.expert_parallel_size": 2},
    "dp2": {},
    "tp2_etp1_ep2": {
        "parallel.tensor_parallel_size": 2,
        "parallel.expert_tensor_parallel_size": 1,
        "parallel.expert_parallel_size": 2,
    },
    "cp2": {"parallel.context_parallel_size": 2},
    "cp2_ep2": {"parallel.context_parallel_size": 2, "parallel.expert_parallel_size": 2},
    "ep2_recompute": {"parallel.expert_parallel_size": 2, "training.recompute": "full"},
    "ep2_allgather": {
        "parallel.expert_parallel_size": 2,
        "moe.token_dispatcher": "allgather",
    },
}
FOUR: dict[str, dict[str, Any]] = {
    "tp2_ep2": {"parallel.tensor_parallel_size": 2, "parallel.expert_parallel_size": 2},
    "pp2_ep2": {"parallel.pipeline_parallel_size": 2, "parallel.expert_parallel_size": 2},
    "cp2_pp2": {"parallel.context_parallel_size": 2, "parallel.pipeline_parallel_size": 2},
    "cp2_tp2": {"parallel.context_parallel_size": 2, "parallel.tensor_parallel_size": 2},
}
PLAIN: dict[str, dict[str, Any]] = {
    f"plain_{name}": layout for name, layout in ({"single": {}} | TWO | FOUR).items()
}
"""By plain Megatron: the switch turns every accelerator off."""
TOGETHER = {"uneven_pp2", "tp2_etp1_ep2", "pp2_ep2", "cp2_tp2", "cp2_pp2", "cp2_ep2"}
ELSEWHERE = {"dp2", "ep2_recompute", "ep2_allgather"}
DEEP = TOGETHER | ELSEWHERE | PLAIN.keys() - {"plain_single", "plain_ep2"}
"""Those that put together what others have alone, or that `test_megatron_on_cpu.py` has, too."""
RELAY = "relay"
LAYOUTS = [
    pytest.param(name, marks=pytest.mark.deep if name in DEEP else ())
    for name in (*TWO, *FOUR, *PLAIN)
]


def _losses(run_dir: Path) -> dict[int, float]:
    return {r.step: r.loss for r in step_records(run_dir) if r.loss is not None}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


def _continue(root: Path, name: str, layout: dict[str, Any]) -> Job:
    loaded = {
        "checkpoint.load": str(root / "seed" / "checkpoints"),
        "megatron.exit-interval": STEPS,
    }
    return Job(run_dir=root / name, overrides={**SHAPE, **layout, **loaded})


@pytest.fixture(scope="module")
def single(root: Path) -> dict[int, float]:
    """Losses of one process that goes on from the seed checkpoint, which this fixture makes."""
    stop = {"checkpoint.save_interval": SEED_STEPS, "megatron.exit-interval": SEED_STEPS}
    seed = Job(run_dir=root / "seed", overrides={**SHAPE, **stop})
    run_jobs([seed, _continue(root, "single", {})], world_size=1)
    return _losses(root / "single")


@pytest.fixture(scope="module")
def layouts(
    root: Path, single: dict[int, float], chosen: Callable[[str], list[str]]
) -> dict[str, dict[int, float]]:
    """Losses in every layout."""
    names = chosen("layout")
    for table, switch in ((TWO | FOUR, ""), (PLAIN, "1")):
        for world_size in (1, 2, 4):
            own = {n: table[n] for n in names if n in table and _world_size(n) == world_size}
            jobs = [_continue(root, name, layout) for name, layout in own.items()]
            if jobs:
                run_jobs(jobs, world_size=world_size, environment={SWITCH: switch})
    return {name: _losses(root / name) for name in names}


def _world_size(name: str) -> int:
    layout = name.removeprefix("plain_")
    return 1 if layout == "single" else 4 if layout in FOUR else 2


@pytest.fixture(scope="module")
def relay(root: Path, single: dict[int, float]) -> dict[int, float]:
    """Losses of a run that goes through EP, TP, CP and PP in turn, and ends in one process."""
    *legs, last = _relay(root)
    run_jobs(legs, world_size=2)
    run_jobs([last], world_size=1)
    return _losses(root / RELAY)


def _relay(root: Path) -> list[Job]:
    """Every leg goes on from what the one before saved, and the first from the seed."""
    jobs, saved = [], root / "seed" / "checkpoints"
    ways = [TWO[name] for name in ("ep2", "tp2", "cp2_ep2", "pp2")]
    for until, layout in zip(range(SEED_STEPS + 1, STEPS + 1), [*ways, {}], strict=True):
        own = {
            "checkpoint.load": str(saved),
            "checkpoint.save_interval": 1,
            "megatron.exit-interval": until,
        }
        jobs.append(Job(run_dir=root / RELAY, overrides={**SHAPE, **layout, **own}))
        saved = root / RELAY / "checkpoints"
    return jobs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_of_five_steps_agree_with_a_single_process(
    layout: str, layouts: dict[str, dict[int, float]], single: dict[int, float]
) -> None:
    expected = {step: single[step] for step in range(SEED_STEPS + 1, STEPS + 1)}
    assert layouts[layout] == pytest.approx(expected, rel=1e-4)


def test_experts_start_from_the_same_weights_however_they_are_split(
    single: dict[int, float], root: Path
) -> None:
    fresh = {**SHAPE, **TWO["ep2"], "megatron.exit-interval": SEED_STEPS}
    run_jobs([Job(run_dir=root / "ep2_from_scratch", overrides=fresh)], world_size=2)
    # Without seeds of their own, the experts of the second process are copies of the first's.
    expected = _losses(root / "seed")
    assert sorted(expected) == [1, 2]
    assert _losses(root / "ep2_from_scratch") == pytest.approx(expected, rel=5e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_equal_tokens_times_top_k_in_every_layer(
    layout: str, layouts: dict[str, dict[int, float]], root: Path
) -> None:
    snapshots = list(read_routing(root / layout / ROUTING_FILE))
    assert [s.step for s in snapshots] == list(range(SEED_STEPS + 1, STEPS + 1))
    for snapshot in snapshots:
        assert snapshot.tokens == 8 * 32
        assert snapshot.layers == (1, 2, 3, 4)
        totals = snapshot.tokens_per_expert.sum(axis=1) + snapshot.dropped
        assert totals.tolist() == snapshot.assigned.tolist() == [8 * 32 * 2] * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_step_routes_the_same_tokens_in_every_layout(
    layout: str, layouts: dict[str, dict[int, float]], root: Path
) -> None:
    reference = next(read_routing(root / "single" / ROUTING_FILE))
    snapshot = next(read_routing(root / layout / ROUTING_FILE))
    # Rounding may move a token whose two best experts tie to seven digits.
    difference = abs(snapshot.tokens_per_expert - reference.tokens_per_expert).sum()
    assert difference <= 4
    for name, tolerance in {"entropy": 1e-4, "aux_loss": 1e-3, "z_loss": 1e-4}.items():
        expected = reference.per_layer[name]
        assert snapshot.per_layer[name] == pytest.approx(expected, rel=tolerance), name


@pytest.mark.parametrize("layout", ["ep2"])
def test_steps_say_memory_and_the_time_of_each_expert_rank(
    layout: str, layouts: dict[str, dict[int, float]], root: Path
) -> None:
    for record in step_records(root / layout):
        assert record.memory_bytes is not None
        assert record.memory_bytes > 2**20
        if Path("/proc/self/clear_refs").exists():
            assert record.peak_memory_bytes is not None
            # The mark is kept by page, the resident size is a little behind.
            assert record.peak_memory_bytes > 0.9 * record.memory_bytes
        assert len(record.expert_rank_seconds) == 2
        assert min(record.expert_rank_seconds) > 0
    assert {it.expert_rank_seconds for it in step_records(root / "single")} == {()}


def test_resuming_through_ep_tp_cp_pp_and_single_follows_one_curve(
    relay: dict[int, float], single: dict[int, float], root: Path
) -> None:
    assert relay == pytest.approx(single, rel=1e-4)
    assert sorted(single) == list(range(SEED_STEPS + 1, STEPS + 1))
    saved = RoutingProfile.load(_checkpoint(root, STEPS) / PROFILE_FILE)
    assert (saved.steps, saved.first_step, saved.last_step) == (STEPS, 1, STEPS)


def test_profile_of_every_layout_says_of_which_weights_it_is(
    relay: dict[int, float], root: Path, tmp_path: Path
) -> None:
    """Under EP, TP, CP with EP, PP and in one process; and so says what is exported."""
    found = []
    for step in range(SEED_STEPS + 1, STEPS + 1):
        folder = _checkpoint(root, step)
        known = RoutingProfile.load(folder / PROFILE_FILE).routers
        assert known == routers_of(folder)
        assert [*known] == [1, 2, 3, 4]
        found.append(tuple(known.values()))
    assert len({*found}) == len(found), "every step changes them"

    export_checkpoint(
        _checkpoint(root, STEPS), tmp_path / "hf", execution=Execution(progress=False)
    )
    counts = counts_of(tmp_path / "hf" / PROFILE_FILE, open_store(tmp_path / "hf"))
    assert len(counts) == len(open_store(tmp_path / "hf").keys)
    earlier = _checkpoint(root, STEPS - 1) / PROFILE_FILE
    with pytest.raises(ConfigError, match="counted on other weights"):
        counts_of(earlier, open_store(tmp_path / "hf"))
    meant = RoutingProfile.load(earlier).of_any_model()
    assert counts_of(meant, open_store(tmp_path / "hf")).keys() == counts.keys()


def _checkpoint(root: Path, step: int) -> Path:
    return root / RELAY / "checkpoints" / f"iter_{step:07d}"
