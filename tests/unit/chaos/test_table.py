"""The report of a campaign."""

from random import Random

from moe_megatron.chaos.campaign import Hit
from moe_megatron.chaos.harm import Harm
from moe_megatron.chaos.table import campaign_table, hits_table
from moe_megatron.chaos.victim import Victim


def _strike(victim: Victim, random: Random) -> str:
    raise NotImplementedError


HARM = Harm(name="kill-rank", meaning="SIGKILL", strike=_strike, needs=lambda victim: None)


def _hit(number: int, seconds: float | None, lost: int | None, failure: str | None = None) -> Hit:
    return Hit(
        number=number,
        harm="kill-rank",
        what="rank 1",
        step=40,
        outcome="restarted",
        failure=failure,
        seconds=seconds,
        start_seconds=seconds,
        lost_steps=lost,
    )


def test_each_harm_is_a_row_with_what_was_survived() -> None:
    hits = [_hit(1, 9.0, 3), _hit(2, 11.0, 17), _hit(3, None, None, "no step for 9 s")]
    table = campaign_table([HARM], hits, ["hit 3 (kill-rank): no step for 9 s"])
    assert "| kill-rank | SIGKILL | 3 | 2 | 3 | 10.0 | 11.0 | 17 |" in table
    assert "3 hits, 1 failures." in table
    assert "- hit 3 (kill-rank): no step for 9 s" in table


def test_a_harm_without_hits_has_empty_cells() -> None:
    assert "| kill-rank | SIGKILL | 0 | 0 | 0 |  |  |  |" in campaign_table([HARM], [], [])


def test_every_hit_is_a_row() -> None:
    table = hits_table([_hit(1, 9.0, 3), _hit(2, None, None, "lost it")])
    assert "| 1 | 40 | kill-rank | rank 1 | restarted | 9.0 | 3 |" in table
    assert "| 2 | 40 | kill-rank | rank 1 | restarted: lost it |  |  |" in table
