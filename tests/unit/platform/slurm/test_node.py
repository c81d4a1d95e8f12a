"""The place of a node in its job, and the words for torchrun."""

import pytest

from moe_megatron.errors import BackendUnavailableError
from moe_megatron.platform.slurm.node import Place, torchrun_words

ENVIRONMENT = {
    "SLURM_JOB_ID": "12",
    "SLURM_RESTART_COUNT": "3",
    "SLURM_NNODES": "4",
    "SLURM_NODEID": "1",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "12345",
}


def test_words_name_the_node_and_where_the_first_rank_listens() -> None:
    place = Place.from_environment(ENVIRONMENT)
    assert (place.job, place.restart) == ("12", 3)
    assert torchrun_words(place, 8, ["train.py", "--x"]) == [
        *("--nnodes", "4", "--node-rank", "1", "--nproc-per-node", "8"),
        *("--master-addr", "n1", "--master-port", "12345", "train.py", "--x"),
    ]


def test_first_attempt_has_no_restart_count() -> None:
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "SLURM_RESTART_COUNT"}
    assert Place.from_environment(environment).restart == 0


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_NODEID", "MASTER_ADDR"])
def test_process_outside_of_a_job_is_refused(name: str) -> None:
    environment = {k: v for k, v in ENVIRONMENT.items() if k != name}
    with pytest.raises(BackendUnavailableError, match=f"{name} is not set: .* started by srun"):
        Place.from_environment(environment)
