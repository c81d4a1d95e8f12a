"""Quantization by a library: what is handed over and back, without the library.

In place of the library's program runs one that answers with codes that were made here by `rtn`, in
the library's format: what comes out must be the folder that `rtn` writes, byte by byte.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron.checkpoint.integrity.check import check_folder
from moe_megatron.cli.main import main
from moe_megatron.errors import CheckpointError, ConfigError, DataError
from moe_megatron.inference.quantization.libraries import environment
from moe_megatron.inference.quantization.libraries.by_library import (
    LibraryRecipe,
    quantize_by_library,
)
from moe_megatron.inference.quantization.libraries.export import role_of
from moe_megatron.inference.quantization.libraries.library import METHODS
from moe_megatron.inference.quantization.methods import Quantized
from moe_megatron.inference.quantization.precision import Precision
from moe_megatron.inference.quantization.quantize import Recipe, quantize
from moe_megatron.inference.quantization.rtn import round_to_nearest
from moe_megatron.optimization import MoEOptimizer
from moe_megatron.testing.expert_models import save_model
from moe_megatron.text.loading import load_tokenizer

ANSWER = """\
import json, shutil, sys
job = json.load(open(sys.argv[1]))
shutil.copy(job["calibration"], job["model"] + "/../seen.safetensors")
shutil.copytree(job["model"] + "/../answer", job["output"])
"""
FAIL = "import sys; print('Loading'); sys.exit('ValueError: no such layer')"
HANG = """\
import json, os, subprocess, sys, time
job = json.load(open(sys.argv[1]))
child = subprocess.Popen(["sleep", "600"])
open(job["model"] + "/../pids", "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
WHOLE_WORD = 2**32


def words(codes: torch.Tensor) -> torch.Tensor:
    """Eight codes, from 0 to 15, of a row in one number, the first in the lowest bits."""
    sixteen = 16 ** torch.arange(8, dtype=torch.int64)
    packed = (codes.long().view(len(codes), -1, 8) * sixteen).sum(-1)
    return torch.where(packed >= WHOLE_WORD // 2, packed - WHOLE_WORD, packed).to(torch.int32)


def as_gptq(found: Quantized) -> dict[str, torch.Tensor]:
    rows, columns = found.codes.shape
    groups = found.scales.shape[1]
    return {
        "qweight": words(found.codes + 8).T.contiguous(),
        "qzeros": words(torch.full((groups, rows), 7)),
        "scales": found.scales.T.contiguous().half(),
        "g_idx": (torch.arange(columns) // (columns // groups)).int(),
    }


def as_packed(found: Quantized) -> dict[str, torch.Tensor]:
    return {"weight_packed": words(found.codes + 8), "weight_scale": found.scales}


def as_floats(found: Quantized) -> dict[str, torch.Tensor]:
    return {
        "weight": found.codes.float().to(torch.float8_e4m3fn),
        "weight_scale": torch.ones(()),
        "input_scale": torch.ones(()),
    }


FORMATS = {"gptq": ("gptq", as_gptq), "w4a16": ("compressed-tensors", as_packed)}
AS_WRITTEN = {"modelopt_fp8": ("modelopt", as_floats)}


class Handover:
    """A model, its text, an environment that is a Python alone, and a program for it."""

    def __init__(self, place: Path, corpus: Path, tokenizer: Path) -> None:
        known = load_tokenizer(str(tokenizer))
        sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": known.vocab_size}
        self.place = place
        self.model = save_model("mixtral", place / "model", torch.bfloat16, **sizes)
        known.save(self.model)
        self.text = corpus.read_text()
        self.target = place / "small"
        self.before = {*place.iterdir()}

    def answer(self, method: str) -> None:
        """What the library would write."""
        told, numbers = (FORMATS | AS_WRITTEN)[method]
        made = {}
        for name, tensor in load_file(self.model / "model.safetensors").items():
            module = name.removesuffix(".weight")
            if role_of(module) is None:
                made[name] = tensor
                continue
            found = round_to_nearest(tensor, Precision(4, 32))
            made |= {f"{module}.{end}": it for end, it in numbers(found).items()}
        (self.place / "answer").mkdir()
        save_file(made, self.place / "answer" / "model.safetensors")
        config = json.loads((self.model / "config.json").read_text())
        config["quantization_config"] = {"quant_method": told}
        (self.place / "answer" / "config.json").write_text(json.dumps(config))
        self.before = {*self.place.iterdir()}

    def quantize(self, method: str, program: str) -> str:
        path = self.place / "program.py"
        path.write_text(program)
        self.before |= {path}
        recipe = LibraryRecipe(method=method, sequences=4, length=16, least=3)
        made, coverage = quantize_by_library(
            self.model, self.target, recipe, self.text, progress=False, program=path
        )
        assert made.folder == self.target
        return coverage.table()

    def left(self) -> set[str]:
        """Names of what is there beside what was before."""
        return {it.name for it in {*self.place.iterdir()} - self.before}


@pytest.fixture
def handover(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Handover:
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    for method in FORMATS | AS_WRITTEN:
        python = environment._folder(METHODS[method].library) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
    (tmp_path / "place").mkdir()
    return Handover(tmp_path / "place", corpus, tokenizer)


@pytest.mark.parametrize("method", FORMATS)
def test_what_the_library_rounded_is_what_is_written(handover: Handover, method: str) -> None:
    handover.answer(method)
    assert "calibration tokens by expert (24 experts)" in handover.quantize(method, ANSWER)
    assert handover.left() == {"small", "seen.safetensors"}
    seen = load_file(handover.place / "seen.safetensors")["input_ids"]
    assert (tuple(seen.shape), seen.dtype) == ((4, 16), torch.int32)
    own = quantize(handover.model, handover.place / "own", Recipe(), progress=False).folder
    theirs = load_file(handover.target / "model.safetensors")
    for name, tensor in load_file(own / "model.safetensors").items():
        assert torch.equal(theirs[name].view(torch.uint8), tensor.view(torch.uint8)), name


def rename(handover: Handover, *pairs: tuple[str, str]) -> None:
    """Other names for tensors of the answer."""
    file = handover.place / "answer" / "model.safetensors"
    tensors = load_file(file)
    for old, new in pairs:
        tensors = {name.replace(old, new): it for name, it in tensors.items()}
    save_file(tensors, file)


def test_matrices_that_were_exchanged_are_found(handover: Handover) -> None:
    handover.answer("w4a16")
    rename(handover, (".w1.", ".w0."), (".w3.", ".w1."), (".w0.", ".w3."))
    with pytest.raises(CheckpointError, match=r"experts\.7\.w1 that is not near .* exchanged"):
        handover.quantize("w4a16", ANSWER)
    assert handover.left() == {"seen.safetensors"}


def test_a_format_for_servers_is_kept_as_the_library_wrote_it(handover: Handover) -> None:
    handover.answer("modelopt_fp8")
    handover.quantize("modelopt_fp8", ANSWER)
    theirs = (handover.place / "answer" / "model.safetensors").read_bytes()
    assert (handover.target / "model.safetensors").read_bytes() == theirs
    assert load_tokenizer(str(handover.target)).vocab_size
    assert check_folder(handover.target).state == "valid"


def test_a_format_for_servers_needs_the_names_of_the_family(handover: Handover) -> None:
    handover.answer("modelopt_fp8")
    rename(handover, ("block_sparse_moe", "mlp"))
    with pytest.raises(CheckpointError, match=r"calls experts .*mlp\.experts.*block_sparse_moe"):
        handover.quantize("modelopt_fp8", ANSWER)
    assert handover.left() == {"seen.safetensors"}


def test_a_library_that_leaves_an_expert_as_it_was_leaves_no_folder(handover: Handover) -> None:
    handover.answer("w4a16")
    file = handover.place / "answer" / "model.safetensors"
    tensors = load_file(file)
    module = "model.layers.1.block_sparse_moe.experts.3.w2"
    tensors = {name: it for name, it in tensors.items() if not name.startswith(module)}
    save_file(tensors | {f"{module}.weight": torch.zeros(64, 96)}, file)
    with pytest.raises(CheckpointError, match=r"llm-compressor left 1 of 72 .*experts\.3\.w2"):
        handover.quantize("w4a16", ANSWER)
    assert handover.left() == {"seen.safetensors"}


def test_a_library_that_fails_is_quoted_and_its_messages_are_kept(handover: Handover) -> None:
    with pytest.raises(CheckpointError, match=r"GPTQModel failed \(status 1\).*no such layer"):
        handover.quantize("gptq", FAIL)
    assert handover.left() == {"small.gptq.log"}
    assert "Loading" in (handover.place / "small.gptq.log").read_text()


def test_ctrl_c_ends_the_library_and_what_it_started(handover: Handover) -> None:
    pids = handover.place / "pids"

    def interrupt() -> None:
        while not (pids.is_file() and len(pids.read_text().split()) == 2):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        handover.quantize("gptq", HANG)
    assert handover.left() == {"pids"}
    for pid in pids.read_text().split():
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_without_the_environment_the_command_that_builds_it_is_said(
    handover: Handover, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = handover.place / "text.txt"
    text.write_text(handover.text)
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(handover.place / "other_cache"))
    asked = ["quantize", str(handover.model), str(handover.target), "--method"]
    for wrong, said in (
        ([*asked, "gptq", "--calibration", str(text)], "--build-environment gptqmodel`"),
        ([*asked, "gptq"], "give both, or neither"),
        ([*asked, "rtn", "--calibration", str(text)], "give both, or neither"),
        ([*asked, "awq", "--calibration", str(text), "--bits", "8"], "leave --bits, --profile"),
        ([*asked, "gptq", "--calibration", str(text), "--asymmetric"], "--asymmetric out"),
        (
            [*asked, "nvfp4", "--calibration", str(text), "--text", str(text)],
            "nothing here computes with what --method nvfp4 writes",
        ),
        (["quantize", "--build-environment", "gptq"], "Did you mean 'gptqmodel'?"),
        (["quantize", str(handover.model)], "give the model and the folder to write"),
    ):
        assert main(wrong) == 2, wrong
        assert said in capsys.readouterr().err
    assert not handover.target.exists()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("gtpq", "Did you mean 'gptq'?"),
        ("nvfp4", "nothing here computes with what 'nvfp4' writes"),
        ("awq", "--build-environment llmcompressor"),
    ],
)
def test_in_python_the_same_is_refused(
    handover: Handover, monkeypatch: pytest.MonkeyPatch, method: str, said: str
) -> None:
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(handover.place / "other_cache"))
    with pytest.raises(ConfigError, match=re.escape(said)):
        MoEOptimizer().quantize_with_data(
            handover.model, handover.target, handover.text, method=method
        )
    assert handover.left() == set()


def test_an_environment_that_cannot_be_installed_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path))
    monkeypatch.setattr(environment.sys, "executable", "/bin/false")
    library = METHODS["gptq"].library
    with pytest.raises(DataError, match="of GPTQModel was not built: an environment was not made"):
        environment.build_environment(library)
    assert not [*(tmp_path / "environments").iterdir()]
    with pytest.raises(ConfigError, match="--build-environment gptqmodel"):
        environment.environment_python(library)


def test_a_text_that_is_too_short_is_refused_before_the_library_runs(handover: Handover) -> None:
    handover.text = "too short"
    with pytest.raises(DataError, match="calibration needs sequences of 16"):
        handover.quantize("gptq", FAIL)
    assert handover.left() == set()


@pytest.mark.libraries
@pytest.mark.parametrize("method", METHODS)
def test_the_library_itself(
    corpus: Path, tokenizer: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        environment.environment_python(METHODS[method].library)
    except ConfigError as error:
        pytest.skip(str(error))
    known = load_tokenizer(str(tokenizer))
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": known.vocab_size}
    if METHODS[method].as_written:
        family, experts = "qwen3_moe", {"moe_intermediate_size": 32}
    else:
        family, experts = "mixtral", {"intermediate_size": 96}
    model = save_model(family, tmp_path / "model", torch.bfloat16, **sizes, **experts)
    known.save(model)
    words = ["quantize", str(model), str(tmp_path / "small"), "--method", method, "--quiet"]
    words += ["--calibration", str(corpus), "--sequences", "8", "--length", "32", "--least", "4"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert (
        "experts       8  " if METHODS[method].as_written else "experts       8  int4 g32"
    ) in said
