"""The programs that scripts of examples/slurm start beside training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe_megatron import MoEModel

ROOT = Path(__file__).parents[2]


@pytest.mark.deep
@pytest.mark.slow
def test_generate_continues_each_prompt(tmp_path: Path, tokenizer: Path) -> None:
    torch.manual_seed(0)
    model = MoEModel(
        hidden_size=32, num_experts=4, experts_per_token=2, num_layers=1, vocab_size=300
    )
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("Document 1: the\nlazy dogs\n")
    words = [tmp_path / "model", tmp_path / "prompts.txt", "--tokenizer", tokenizer]
    answer = subprocess.run(
        [sys.executable, ROOT / "examples/slurm/generate.py", *words, "--max-new-tokens", "5"],
        env={"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["Document 1: the", "lazy dogs"]
    assert all(line["continuation"] for line in lines)
