from pathlib import Path
from typing import Any

import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.locations import parse_location

FOLDER = {"driver": "file", "path": "/data/a/", "file_io_locking": {"mode": "none"}}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_REGION", raising=False)


@pytest.mark.parametrize(
    ("address", "kvstore"),
    [
        ("s3://runs/moe/a", {"driver": "s3", "bucket": "runs", "path": "moe/a/"}),
        ("s3://runs/moe/a/", {"driver": "s3", "bucket": "runs", "path": "moe/a/"}),
        ("gs://runs", {"driver": "gcs", "bucket": "runs", "path": ""}),
        ("file:///data/a", FOLDER),
        ("/data/a", FOLDER),
        (Path("/data/a"), FOLDER),
    ],
)
def test_addresses_become_specifications_that_tensorstore_accepts(
    address: str | Path, kvstore: dict[str, Any]
) -> None:
    import tensorstore as ts

    location = parse_location(address, "the history")
    assert location.kvstore == kvstore
    assert {"path": ""} | ts.KvStore.Spec(location.kvstore).to_json() == kvstore
    assert (location.folder is None) == (kvstore["driver"] != "file")


def test_relative_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_location("runs/a", "it").folder == tmp_path / "runs" / "a"


def test_s3_compatible_server_is_taken_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    kvstore = parse_location("s3://runs/a", "it").kvstore
    assert kvstore["endpoint"] == "http://minio:9000"
    assert kvstore["aws_region"] == "us-east-1"
    assert "endpoint" not in parse_location("gs://runs/a", "it").kvstore


@pytest.mark.parametrize("address", ["http://host/a", "s3://", "s3:///a", "file://host/a"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be kept at .*; give a folder, .*s3://BUCKET"):
        parse_location(address, "the history")


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="must not have a name or password in it") as error:
        parse_location("s3://AKIAKEY:sesame@bucket/a", "experts")
    assert "sesame" not in str(error.value)
    assert "AKIAKEY" not in str(error.value)
