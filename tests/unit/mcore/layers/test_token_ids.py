"""Which domain a row of a layer is of, where samples of several sources share a micro-batch."""

import torch

import moe_megatron.mcore  # noqa: F401 (before Megatron: prepares it for this machine)
from moe_megatron.mcore.layers.token_ids import domain_ids_here, show_token_ids, token_ids_here


def test_domains_of_rows_and_of_packed_rows_are_those_of_their_tokens():
    tokens, domains = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([7, 8])
    show_token_ids(tokens, domains)
    assert token_ids_here(sequence_parallel=False).tolist() == [1, 4, 2, 5, 3, 6]
    assert domain_ids_here(sequence_parallel=False).tolist() == [7, 8, 7, 8, 7, 8]
    packed = domains.unsqueeze(1).expand_as(tokens).reshape(1, -1)
    show_token_ids(tokens.reshape(1, -1), packed)
    assert token_ids_here(sequence_parallel=False).tolist() == [1, 2, 3, 4, 5, 6]
    assert domain_ids_here(sequence_parallel=False).tolist() == [7, 7, 7, 8, 8, 8]
    show_token_ids(None)
