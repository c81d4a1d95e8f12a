from pathlib import Path

from moe_megatron.telemetry.history.location import history_address


def test_address_of_a_run_is_its_own_folder_or_its_name_below_a_common_one() -> None:
    run = Path("runs/demo-2")
    assert history_address(None, run) == run / "history"
    assert history_address("s3://b/all/", run) == "s3://b/all/demo-2"
    assert history_address("s3://b/all", None) is None
