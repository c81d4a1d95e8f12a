"""A campaign against a job that trains nothing: what it survives, and how its faults are found."""

import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from moe_megatron.chaos.campaign import Hit, Plan, run_campaign
from moe_megatron.chaos.harm import find_harms, harm
from moe_megatron.chaos.victim import Victim
from moe_megatron.errors import ConfigError

JOB = Path(__file__).with_name("job.py")


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[list[Victim]]:
    """Jobs to kill at the end."""
    jobs: list[Victim] = []
    yield jobs
    for job in jobs:
        job.end()


def _victim(folder: Path, victims: list[Victim], *fault: str, steps: int = 300) -> Victim:
    run = folder / "run"
    (folder / "temporary").mkdir()
    victim = Victim(
        run_dir=run,
        checkpoints=run / "checkpoints",
        data=folder / "data",
        command=[sys.executable, str(JOB), str(run), str(steps), "0.01", *fault],
        mark=uuid.uuid4().hex,
        temporary=folder / "temporary",
        injuries=folder,
        log=folder / "log",
    )
    victims.append(victim)
    return victim


def _campaign(victim: Victim, *harms: str, hits: int, patience: float = 20) -> list[Hit]:
    plan = Plan(harms=find_harms(harms), hits=hits, steps=300, patience=patience)
    return list(run_campaign(victim, plan, Random(3)))


def test_kills_are_survived_and_each_is_accounted_for(
    tmp_path: Path, victims: list[Victim]
) -> None:
    victim = _victim(tmp_path, victims)
    hits = _campaign(victim, "kill-rank", "kill-launcher", "terminate-job", hits=6)
    assert [hit.number for hit in hits] == [1, 2, 3, 4, 5, 6]
    assert {hit.harm for hit in hits} == {"kill-rank", "kill-launcher", "terminate-job"}
    assert [hit.failure for hit in hits] == [None] * 6
    survived = [hit for hit in hits if hit.lost_steps is not None]
    assert survived
    assert all(0 <= hit.lost_steps <= 12 for hit in survived if hit.lost_steps)
    assert victim.exit_code() == 0
    assert victim.step() == 300
    assert victim.everything() == []


@pytest.mark.deep
def test_a_job_that_forgets_its_checkpoint_is_found(tmp_path: Path, victims: list[Victim]) -> None:
    hits = _campaign(_victim(tmp_path, victims, "forgetful"), "kill-rank", hits=2)
    failures = [hit.failure for hit in hits if hit.failure]
    assert failures
    assert "it went back to step 0, but checkpoint" in failures[0]


@pytest.mark.deep
def test_a_job_that_ends_with_a_fault_is_found(tmp_path: Path, victims: list[Victim]) -> None:
    hits = _campaign(_victim(tmp_path, victims, "hopeless"), "kill-rank", hits=1)
    assert hits[0].failure == "it ended with exit code 3"


@pytest.mark.deep
def test_an_orphan_is_found(tmp_path: Path, victims: list[Victim]) -> None:
    victim = _victim(tmp_path, victims, "orphan")
    _campaign(victim, "kill-launcher", hits=1)
    assert victim.exit_code() == 0
    assert len(victim.everything()) >= 1


@pytest.mark.deep
def test_a_job_that_hangs_is_lost(tmp_path: Path, victims: list[Victim]) -> None:
    victim = _victim(tmp_path, victims)
    victim.command = [*victim.command[:-1], "0.01"]
    hits = _campaign(victim, "stop-rank", hits=1, patience=2)
    assert [hit.outcome for hit in hits] in (["lost"], ["went on"])  # rank 1 is not waited for


def test_a_harm_that_finds_nothing_to_hit_says_so(tmp_path: Path, victims: list[Victim]) -> None:
    hits = _campaign(_victim(tmp_path, victims), "flood-exporter", hits=1, patience=1)
    assert hits[0].what == "nothing: no exporter is running"


def test_an_unknown_harm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no harm 'kill-rnk'.*Did you mean"):
        find_harms(["kill-rnk"])


def test_a_harm_from_outside_is_one_function(tmp_path: Path, victims: list[Victim]) -> None:
    @harm("kill-all", "SIGKILL of all ranks at once")
    def kill_all(victim: Victim, random: Random) -> str:
        ranks, aimed = victim.ranks(), victim.step()
        while victim.step() < aimed + 20:  # aims so long that the job seems to go on unhurt
            time.sleep(0.01)
        for process in ranks.values():
            process.kill()
        return f"{len(ranks)} ranks"

    (hit,) = _campaign(_victim(tmp_path, victims), "kill-all", hits=1)
    assert (hit.what, hit.outcome, hit.failure) == ("2 ranks", "restarted", None)
