import torch

from moe_megatron.model.attention import rotary_angles, rotate, token_positions, visible_keys


def test_visible_keys_without_padding_or_cache_is_plain_causal():
    assert visible_keys(None, torch.arange(4), 4) is None


def test_visible_keys_after_a_cache_are_all_before():
    mask = visible_keys(None, torch.tensor([2, 3]), 4)
    assert mask[0, 0].tolist() == [[True, True, True, False], [True, True, True, True]]


def test_visible_keys_hide_padding_but_not_a_position_from_itself():
    valid = torch.tensor([[False, True, True], [True, True, False]])
    mask = visible_keys(valid, torch.arange(3), 3)[:, 0].int().tolist()
    assert mask[0] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert mask[1] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_positions_count_from_the_first_token():
    valid = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert token_positions(valid, torch.arange(4)).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert token_positions(valid, torch.tensor([3])).tolist() == [[1], [2]]
    assert token_positions(None, torch.tensor([3])).tolist() == [[3]]


def test_rotation_turns_each_pair_by_its_angle():
    """Each pair (i, i + half) of the features as a complex number, one at a time."""
    head_dim, base = 6, 100
    heads = torch.randn(1, 2, 4, head_dim)
    positions = torch.arange(4)[None]
    turned = rotate(heads, *rotary_angles(positions, head_dim, base))
    for head in range(2):
        for place in range(4):
            for i in range(3):
                number = torch.complex(heads[0, head, place, i], heads[0, head, place, i + 3])
                angle = place / base ** (2 * i / head_dim)
                expected = number * torch.polar(torch.tensor(1.0), torch.tensor(angle))
                got = turned[0, head, place]
                torch.testing.assert_close(torch.complex(got[i], got[i + 3]), expected)


def test_rotated_products_depend_on_the_distance_only():
    query, key = torch.randn(2, 1, 1, 1, 8)
    turned = [
        (rotate(query, *rotary_angles(torch.tensor([[a]]), 8, 10000))
         * rotate(key, *rotary_angles(torch.tensor([[b]]), 8, 10000))).sum()
        for a, b in [(5, 2), (105, 102)]
    ]  # fmt: skip
    torch.testing.assert_close(turned[0], turned[1], atol=1e-4, rtol=1e-4)
