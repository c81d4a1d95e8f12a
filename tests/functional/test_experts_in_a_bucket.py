"""Experts in a bucket of an S3 server, with credentials of the environment."""

import importlib.util
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moe_megatron.cli.main import main
from moe_megatron.errors import CheckpointError
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.testing.expert_models import save_model
from moe_megatron.testing.ports import free_port

IDS = torch.arange(18).view(2, 9)
SECRET = "sesame-open-wide"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs an S3 server: tools/setup.sh s3")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
        )
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    try:
        made = urllib.request.Request(f"{address}/experts", method="PUT")
        for _ in range(600):
            try:
                urllib.request.urlopen(made, timeout=60).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.1)
        yield "s3://experts"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.deep
def test_a_model_reads_its_experts_from_a_bucket(
    bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import tensorstore as ts

    folder = save_model("qwen3_moe", tmp_path / "model", torch.bfloat16)
    whole = OptimizedMoEModel.from_pretrained(folder)
    wanted = whole(IDS).logits
    whole.close()
    address = f"{bucket}/models/small"
    assert main(["cache", "pack", str(folder), address, "--quiet"]) == 0
    assert f"24 experts, 0.000111 GB, are in {address}" in capfd.readouterr().out
    assert main(["cache", "pack", str(folder), address]) == 2
    assert "has a store of experts already" in capfd.readouterr().err
    model = OptimizedMoEModel.from_pretrained(folder, experts=address)
    model.enable_dynamic_loading(2)
    assert torch.equal(model(IDS).logits, wanted)
    assert torch.equal(model(IDS).logits, wanted)

    kept = model.store._location.kvstore  # type: ignore[attr-defined]
    objects = ts.KvStore.open(kept).result()
    chunks = [it for it in objects.list().result() if b"/c/2/" in it]
    assert len(chunks) == 8
    data = {it: objects.read(it).result().value for it in chunks}
    for harm, said in (
        (lambda it: objects.delete_range(ts.KvStore.KeyRange(it, it + b"\0")).result(), "missing"),
        (lambda it: objects.write(it, b"\0" + data[it][1:]).result(), "Digest mismatch"),
    ):
        model.enable_dynamic_loading(2)
        for it in chunks:
            harm(it)
        with pytest.raises(CheckpointError, match="of layer 3 cannot be read") as error:
            model(IDS)
        assert said in str(error.value)
        for it in chunks:
            objects.write(it, data[it]).result()
        assert torch.equal(model(IDS).logits, wanted)
    model.close()
    said = "".join(capfd.readouterr())
    assert SECRET not in said
    assert "AKIAEXAMPLE" not in said


def test_a_server_that_is_not_there_is_an_error_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_model("olmoe", tmp_path / "model")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert main(["cache", "pack", str(folder), "s3://experts/a", "--quiet"]) == 2
    said = capfd.readouterr().err
    assert "s3://experts/a/experts.json cannot be read" in said
    assert SECRET not in said
