"""One hash for one model, in whatever format and type its weights are."""

import torch

from moe_megatron import MoEModel
from moe_megatron.adapters.base_hash import hash_of_folder, hash_of_model
from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.testing import tiny_models


def test_a_model_has_the_same_hash_in_every_format(tmp_path):
    tiny_models.save("qwen2_moe-dense-layers", tmp_path / "single", fused=False)
    tiny_models.save("qwen2_moe-dense-layers", tmp_path / "fused", fused=True)
    quiet = Execution(progress=False)
    import_checkpoint(tmp_path / "single", tmp_path / "megatron", execution=quiet)
    import_checkpoint(tmp_path / "single", tmp_path / "bf16", dtype="bf16", execution=quiet)
    folders = [hash_of_folder(it) for it in sorted(tmp_path.iterdir())]
    assert len(folders) == 4
    model = MoEModel.from_pretrained(tmp_path / "single")
    assert {hash_of_model(model), *folders} == {folders[0]}


def test_another_number_anywhere_is_another_hash(tmp_path):
    torch.manual_seed(0)
    model = MoEModel(hidden_size=16, num_experts=3, num_layers=2, vocab_size=31)
    before = hash_of_model(model)
    assert hash_of_model(model) == before
    for name in ("layers.1.moe.experts.2.down_proj", "layers.0.attention.k_proj", "embed_tokens"):
        with torch.no_grad():
            model.get_submodule(name).weight[-1, -1] += 1
        assert hash_of_model(model) != before
        before = hash_of_model(model)
