"""Attention weights as numbers and pictures: distance, entropy, rollout."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

Weights = Float[Tensor, "b heads t t"]


def patch_distances(height: int, width: int, pixels: tuple[float, float] = (1.0, 1.0)) -> Float[Tensor, "n n"]:
    """Euclidean distance between the centres of every two patches, in raster order.

    Args:
        height: rows of the token grid.
        width: its columns.
        pixels: height and width of a patch; with 1 the distance is in patches.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows.flatten() * pixels[0], columns.flatten() * pixels[1]), dim=1)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(weights: Weights, distances: Float[Tensor, "n n"]) -> Float[Tensor, "b heads"]:
    """Mean attention distance of each head (Dosovitskiy et al. 2021, figures 7 and 11).

    The distance between a patch and those it attends to, weighted by the attention weights, averaged over the patches.
    Of a patch's weights those on other patches count, scaled to sum 1: class token and registers have no place.

    Args:
        weights: attention weights, rows summing to 1; the last n tokens are the patches.
        distances: from `patch_distances`.
    """
    n = len(distances)
    among = weights[:, :, -n:, -n:]
    mean = torch.einsum("bhqk,qk->bhq", among, distances.to(among))
    return (mean / among.sum(dim=-1).clamp(min=1e-12)).mean(dim=-1)


def attention_entropy(weights: Weights) -> Float[Tensor, "b heads"]:
    """Mean entropy of the attention of a token, in nats: 0 for one token, log t for all t alike."""
    return torch.special.entr(weights).sum(dim=-1).mean(dim=-1)


def rolled(before: Float[Tensor, "b t t"] | None, weights: Weights) -> Float[Tensor, "b t t"]:
    """Attention rollout of one layer more; see `rollout`.

    Args:
        before: the rollout of the layers below; None at the first.
        weights: of this layer.
    """
    mixed = weights.mean(dim=1)
    mixed.diagonal(dim1=-2, dim2=-1).add_(1)
    mixed /= mixed.sum(dim=-1, keepdim=True)
    return mixed if before is None else mixed @ before


def rollout(layers: Iterable[Weights]) -> Float[Tensor, "b t t"]:
    """Attention rollout (Abnar and Zuidema 2020): how much of each input token is in each output token.

    The attention of a layer is the mean over its heads, half of it replaced by the identity for the residual path;
    layers are multiplied. Rows sum to 1.

    Args:
        layers: attention weights, the first layer first; at least one.
    """
    found = None
    for weights in layers:
        found = rolled(found, weights)
    assert found is not None
    return found


def seen_from(reads: Float[Tensor, "b t"], mixed: Float[Tensor, "b *heads t t"]) -> Float[Tensor, "b *heads t"]:
    """How much of each token is seen by an average of tokens.

    Args:
        reads: weight of each token in the average, summing to 1: 1 for the class token alone, or 1/n for n patches.
        mixed: attention weights, or their rollout.
    """
    return torch.einsum("bq,b...qk->b...k", reads.to(mixed), mixed)
