"""Experts shared by two processes against one process with all of them."""

import pytest
import torch
import torch.distributed as dist

from moe_megatron.errors import CheckpointError, TopologyError
from moe_megatron.model import MoEModel
from moe_megatron.testing.distributed import run_distributed

pytestmark = pytest.mark.distributed

OPTIONS = {
    "hidden_size": 32, "num_experts": 4, "num_layers": 2, "num_attention_heads": 4,
    "expert_hidden_size": 24, "vocab_size": 61, "init_std": 0.3, "aux_loss_coef": 0.0,
    "z_loss_coef": 0.0,
}  # fmt: skip


def build(seed=0, **options):
    torch.manual_seed(seed)
    return MoEModel(**(OPTIONS | options))


def batch():
    return torch.randint(0, 61, (4, 10), generator=torch.Generator().manual_seed(1))


def run_scenarios(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    compare_with_one_process(rank)
    route_everything_to_one_process(rank)
    generate_together(rank)
    refuse_and_collect(folder, rank)
    dist.destroy_process_group()


def compare_with_one_process(rank):
    whole, shared, tokens = build(), build(), batch()
    expected = whole(tokens, labels=tokens)
    expected.loss.backward()
    shared.set_expert_parallel_group(dist.group.WORLD)
    assert sorted(shared.layers[0].moe.experts) == [["0", "1"], ["2", "3"]][rank]
    assert shared.num_parameters() == whole.num_parameters()
    mine = tokens[2 * rank : 2 * rank + 2]
    got = shared(mine, labels=mine)
    torch.testing.assert_close(
        got.logits, expected.logits[2 * rank : 2 * rank + 2], atol=1e-5, rtol=1e-5
    )
    got.loss.backward()
    everything = dict(whole.named_parameters())
    for name, parameter in shared.named_parameters():
        gradient = parameter.grad
        if ".experts." not in name:
            dist.all_reduce(gradient)
        torch.testing.assert_close(
            gradient / 2, everything[name].grad, atol=1e-5, rtol=1e-4, msg=name
        )


def route_everything_to_one_process(rank):
    """One process has no tokens for its experts, the other no tokens at all."""
    whole, shared = build(), build()
    for model in (whole, shared):
        for layer in model.layers:
            torch.nn.init.zeros_(layer.moe.router.weight)  # ties go to the first experts
    shared.set_expert_parallel_group(dist.group.WORLD)
    mine = batch()[:2]
    mask = torch.full_like(mine, 1 - rank)
    got = shared(mine, mask, labels=mine)
    got.loss.backward()
    assert all(parameter.grad is not None for parameter in shared.parameters())
    if rank == 0:
        torch.testing.assert_close(got.logits, whole(mine).logits, atol=1e-5, rtol=1e-5)


def generate_together(rank):
    whole, shared = build(), build()
    shared.set_expert_parallel_group(dist.group.WORLD)
    prompt = batch()[rank : rank + 1]
    expected = whole.generate(prompt, 6)
    assert torch.equal(shared.generate(prompt, 6), expected)
    # Process 0 has its last token at once, process 1 perhaps never: neither may wait forever.
    first = whole.generate(batch()[:1], 1)[0, -1]
    got = shared.generate(prompt, 6, eos_token_id=int(first))
    assert got[0, : len(prompt[0])].equal(prompt[0])


def refuse_and_collect(folder, rank):
    with pytest.raises(TopologyError, match=r"2 processes, which must divide num_experts \(3\)"):
        build(num_experts=3).set_expert_parallel_group(dist.group.WORLD)
    with pytest.raises(TopologyError, match=r"process 1 .* different weights .*torch.manual_seed"):
        build(seed=rank).set_expert_parallel_group(dist.group.WORLD)
    model, original = build(), build()
    model.set_expert_parallel_group(dist.group.WORLD)
    with pytest.raises(CheckpointError, match=r"call set_expert_parallel_group\(None\) on all"):
        model.save_pretrained(f"{folder}/model")
    model.set_expert_parallel_group(None)
    assert list(model.state_dict()) == list(original.state_dict())
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert torch.equal(model(batch()).logits, original(batch()).logits)


def test_two_processes_compute_what_one_does(tmp_path):
    run_distributed(run_scenarios, tmp_path)
