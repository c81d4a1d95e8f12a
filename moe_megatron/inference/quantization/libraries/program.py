"""Runs in the environment of a library: quantizes the experts of a model as a JSON file says.

    python program.py job.json

It imports the library, torch and safetensors, and nothing of this package, which is not installed
there. It ends with whoever started it: standard input is a pipe that nobody writes to.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]
_NO_EXPERT = r"^(?!.*\.experts\.\d+\.)"
"""Begins the name of every module that is not in an expert."""


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _rows(job: Job) -> Any:
    """Token ids [S, T]."""
    from safetensors.torch import load_file

    return load_file(job["calibration"])["input_ids"].long()


def gptq(job: Job) -> None:
    """GPTQ by GPTQModel; of what is no expert, nothing."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # one of two cores is refused by its pool
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=4,
        group_size=job["group_size"],
        sym=True,
        desc_act=False,
        dynamic={f"-:{_NO_EXPERT}.*$": {}},
    )
    on = {} if torch.cuda.is_available() else {"device": "cpu"}
    model = GPTQModel.load(job["model"], config, trust_remote_code=False, **on)
    rows = [
        {"input_ids": it[None], "attention_mask": torch.ones_like(it[None])} for it in _rows(job)
    ]
    model.quantize(rows, batch_size=1)
    model.save(job["output"])


def _compressed(job: Job, modifiers: list[Any]) -> None:
    """What llm-compressor makes of a model by some modifiers."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.utils import load_context
    from transformers import AutoModelForCausalLM

    with load_context():  # experts as linear modules; fused ones would stay as they are
        model = AutoModelForCausalLM.from_pretrained(
            job["model"], dtype="auto", local_files_only=True, trust_remote_code=False
        )
    rows = _rows(job)
    text = Dataset.from_dict(
        {"input_ids": rows.tolist(), "attention_mask": (rows * 0 + 1).tolist()}
    )
    oneshot(
        model=model,
        dataset=text,
        recipe=modifiers,
        max_seq_length=rows.shape[1],
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
        moe_calibrate_all_experts=False,  # each learns from the tokens that come to it
    )
    model.save_pretrained(job["output"], save_compressed=True)


def _four_bits(job: Job) -> Job:
    """How llm-compressor is told of symmetric 4-bit experts."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": job["group_size"],
    }
    group = {"targets": ["Linear"], "weights": weights}
    return {"config_groups": {"group_0": group}, "ignore": [f"re:{_NO_EXPERT}.*$"]}


def w4a16(job: Job) -> None:
    """GPTQ by llm-compressor."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    _compressed(job, [GPTQModifier(**_four_bits(job))])


def awq(job: Job) -> None:
    """AWQ by llm-compressor, with the scales that stay in an expert: those before its last matrix.

    Those between a norm and the experts would scale what the router is given.
    """
    import torch
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

    if not torch.cuda.is_available():
        torch.Tensor.pin_memory = lambda self, *given: self  # type: ignore[method-assign]
    inside = AWQMapping(r"re:.*\.experts\.\d+\.up_proj$", [r"re:.*\.experts\.\d+\.down_proj$"])
    _compressed(job, [AWQModifier(mappings=[inside]), QuantizationModifier(**_four_bits(job))])


def nvfp4(job: Job) -> None:
    """NVIDIA's 4-bit floats by llm-compressor."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    only = {"targets": ["Linear"], "scheme": "NVFP4", "ignore": [f"re:{_NO_EXPERT}.*$"]}
    _compressed(job, [QuantizationModifier(**only)])


def _modelopt(job: Job, weights: Job, inputs: Job | None) -> None:
    """ModelOpt's formats, with the largest number as the scale."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype="auto", local_files_only=True, trust_remote_code=False
    )

    def read(model: Any) -> None:
        with torch.inference_mode():
            for row in _rows(job):
                model(row[None])

    wanted: list[Job] = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*.experts.*weight_quantizer*", "cfg": weights},
    ]
    if inputs is not None:
        wanted.append({"quantizer_name": "*.experts.*input_quantizer*", "cfg": inputs})
    model = mtq.quantize(model, {"quant_cfg": wanted, "algorithm": "max"}, read)
    export_hf_checkpoint(model, export_dir=job["output"])


def modelopt_fp8(job: Job) -> None:
    """8-bit floats, of weights and of what they are given."""
    floats = {"num_bits": (4, 3), "axis": None}
    _modelopt(job, floats, floats)


def modelopt_int8(job: Job) -> None:
    """8-bit weights, with a scale for each row."""
    _modelopt(job, {"num_bits": 8, "axis": 0}, None)


METHODS: dict[str, Callable[[Job], None]] = {
    it.__name__: it for it in (gptq, w4a16, awq, nvfp4, modelopt_fp8, modelopt_int8)
}


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    METHODS[told["method"]](told)
