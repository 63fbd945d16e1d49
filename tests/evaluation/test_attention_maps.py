"""Attention as numbers, on weights whose distance, entropy and rollout can be written down."""

import math

import pytest
import torch

from vitlab.evaluation import attention_maps as maps

H, W, PREFIX = 3, 5, 2
PATCHES, TOKENS = H * W, H * W + PREFIX
DISTANCES = maps.patch_distances(H, W, (4.0, 2.0))


def uniform(tokens=TOKENS):
    return torch.full((2, 3, tokens, tokens), 1 / tokens)


def identity(tokens=TOKENS):
    return torch.eye(tokens).expand(2, 3, -1, -1)


def random_weights(*shape):
    return torch.randn(*shape, TOKENS, TOKENS).softmax(dim=-1)


def test_distances_are_between_the_centres_of_patches_in_pixels():
    assert DISTANCES.shape == (PATCHES, PATCHES)
    assert DISTANCES[0, 4] == 8  # four columns of two pixels
    assert DISTANCES[0, 10] == 8  # two rows of four
    assert DISTANCES[0, 6] == pytest.approx(math.hypot(4, 2))
    assert torch.equal(DISTANCES, DISTANCES.T)


def test_identity_attention_has_distance_and_entropy_0():
    assert torch.equal(maps.attention_distance(identity(), DISTANCES), torch.zeros(2, 3))
    assert torch.equal(maps.attention_entropy(identity()), torch.zeros(2, 3))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_uniform_attention_on_a_line_has_the_distance_that_can_be_written_down(count):
    line = maps.patch_distances(1, count, (16.0, 16.0))
    found = maps.attention_distance(uniform(count), line)
    torch.testing.assert_close(found, torch.full((2, 3), 16 * (count**2 - 1) / (3 * count)))
    torch.testing.assert_close(maps.attention_entropy(uniform(count)), torch.full((2, 3), math.log(count)))


def test_attention_to_the_patch_below_has_the_distance_of_a_row():
    below = torch.zeros(1, 1, PATCHES, PATCHES)
    for patch in range(PATCHES):
        below[0, 0, patch, (patch + W) % PATCHES] = 1
    down = torch.tensor([4.0] * (H - 1) + [8.0]).mean()  # from the last row to the first: two rows
    torch.testing.assert_close(maps.attention_distance(below, DISTANCES)[0, 0], down)


def test_what_goes_to_prefix_tokens_changes_no_distance():
    among = torch.randn(2, 3, PATCHES, PATCHES).softmax(dim=-1)
    whole = torch.zeros(2, 3, TOKENS, TOKENS)
    whole[:, :, :, 0], whole[:, :, PREFIX:, PREFIX:] = 0.75, among / 4
    expected = maps.attention_distance(among, DISTANCES)
    torch.testing.assert_close(maps.attention_distance(whole, DISTANCES), expected)
    whole[:, :, :, PREFIX:] = 0  # all of it
    assert torch.equal(maps.attention_distance(whole, DISTANCES), torch.zeros(2, 3))


def test_rollout_of_identities_is_the_identity():
    assert torch.equal(maps.rollout([identity()] * 4), torch.eye(TOKENS).expand(2, -1, -1))


def test_rollout_of_uniform_attention_loses_half_of_the_identity_a_layer():
    found = maps.rollout([uniform()] * 3)
    torch.testing.assert_close(found, torch.eye(TOKENS) / 8 + 7 / 8 / TOKENS + torch.zeros(2, 1, 1))


def test_rollout_multiplies_later_layers_from_the_left():
    one, two = random_weights(2, 3), random_weights(2, 3)
    half = [(w.mean(dim=1) + torch.eye(TOKENS)) / 2 for w in (one, two)]
    found = maps.rollout([one, two])
    torch.testing.assert_close(found, half[1] @ half[0])
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, TOKENS))


def test_what_is_seen_from_tokens_is_the_mean_of_their_rows():
    weights = random_weights(2, 3)
    reads = torch.zeros(2, TOKENS)
    reads[0, 4] = 1
    reads[1, PREFIX:] = 1 / PATCHES
    found = maps.seen_from(reads, weights)
    torch.testing.assert_close(found[0], weights[0, :, 4])
    torch.testing.assert_close(found[1], weights[1, :, PREFIX:].mean(dim=1))
    torch.testing.assert_close(maps.seen_from(reads, weights[:, 0]), found[:, 0])
