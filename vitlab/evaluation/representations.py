"""What a model has learned, as numbers: filters, positions, and how representations change from layer to layer."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitlab.model.position import Position
from vitlab.model.resnet import StandardisedConv
from vitlab.model.stem import Stem


def linear_cka(layers: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "layers layers"]:
    """Linear centered kernel alignment of every two representations (Kornblith et al. 2019), in fp64.

    1 for representations that differ by a rotation and a scale; around 0 for independent ones, as the estimate has no
    bias at few examples (Song et al. 2012; Nguyen et al. 2021), and may then be slightly negative. NaN for one that is
    the same for all examples.

    Args:
        layers: representations of the same n examples, of any widths; n is at least 4.

    Raises:
        ValueError: fewer than 4 examples.
    """
    n = len(layers[0])
    if n < 4:
        raise ValueError(f"{n} examples: CKA needs 4 at least")
    grams = []
    for x in layers:
        x = x.double() - x.double().mean(dim=0)
        gram = x @ x.mT
        gram.fill_diagonal_(0)
        sums = gram.sum(dim=1)
        gram -= (sums[:, None] + sums) / (n - 2)
        gram += sums.sum() / ((n - 1) * (n - 2))
        grams.append(gram.fill_diagonal_(0).flatten())
    products = torch.stack([torch.stack([one @ other for other in grams]) for one in grams])
    norms = products.diagonal().clamp(min=0).sqrt()
    return products / (norms[:, None] * norms)


def effective_rank(x: Float[Tensor, "n d"]) -> float:
    """exp of the entropy of the singular values, which are scaled to sum 1 (Roy and Vetterli 2007); x is centered.

    Between 1, where all examples lie on a line, and min(n - 1, d), where they spread alike in all directions. 0 where
    all are the same.
    """
    x = x.double() - x.double().mean(dim=0)
    values = torch.linalg.eigvalsh(x.mT @ x if len(x) >= x.shape[1] else x @ x.mT)
    values = values.where(values > 1e-12 * values.max(), 0).clamp(min=0).sqrt()
    total = float(values.sum())
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


def principal_components(
    filters: Float[Tensor, "d c p q"], count: int
) -> tuple[Float[Tensor, "k c p q"], Float[Tensor, " k"]]:
    """The leading principal components of a layer's filters (Dosovitskiy et al. 2021, figure 7 left).

    Args:
        filters: one an output channel.
        count: components; at most as many as a filter has numbers.

    Returns:
        The components, each of norm 1 and with its largest number positive; and the fraction of the variance of each.
    """
    flat = filters.double().flatten(1)
    _, values, components = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    components = components * torch.where(largest < 0, -1, 1)
    share = values.square() / values.square().sum().clamp(min=1e-300)
    return components[:count].unflatten(1, filters.shape[1:]).float(), share[:count].float()


def stem_filters(stem: Stem, channels: int) -> Float[Tensor, "d c p q"] | None:
    """The filters that a stem's first layer has over the pixels; None where it is neither linear nor a convolution.

    Args:
        stem: of a ViT.
        channels: of an image.
    """
    for layer in stem.modules():
        if isinstance(layer, StandardisedConv):
            return layer.standardised().detach()
        if isinstance(layer, nn.Conv2d):
            return layer.weight.detach()
        if isinstance(layer, nn.Linear):
            side = round((layer.in_features / channels) ** 0.5)
            square = side**2 * channels == layer.in_features
            return rearrange(layer.weight.detach(), "d (c p q) -> d c p q", c=channels, p=side) if square else None
    return None


def cosine_similarity(vectors: Float[Tensor, "n d"], queries: Int[Tensor, " q"] | None = None) -> Float[Tensor, "q n"]:
    """The cosine of the angle between some vectors and all; NaN where one has no length.

    Args:
        vectors: any.
        queries: indices of the vectors that have a row; None is all.
    """
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    return (unit if queries is None else unit[queries]) @ unit.mT


def added_vectors(position: Position, width: int) -> Float[Tensor, "n d"]:
    """What a position adds to each patch, whatever the patch (Dosovitskiy et al. 2021, figures 7 and 10: a table).

    Args:
        position: a kind that overrides `add`.
        width: channels of a token.
    """
    grid, like = position.grid, next((x for x in (*position.parameters(), *position.buffers())), torch.zeros(()))
    return position.add(like.new_zeros(1, grid.tokens, width))[0, grid.prefix :].float()


def rotation_similarity(
    position: Position, head_width: int, queries: Int[Tensor, " q"] | None = None
) -> Float[Tensor, "q n"]:
    """What rotations do to the logits: the mean factor of the product of a query with itself as key, elsewhere.

    tr(R_p^T R_p') / k for the rotations at the places p and p' and heads of k channels: 1 in place, and for RoPE the
    mean cosine of the angles between them.

    Args:
        position: a kind that overrides `rotate`.
        head_width: k.
        queries: indices of the patches that have a row; None is all.
    """
    grid, like = position.grid, next((x for x in (*position.parameters(), *position.buffers())), torch.zeros(()))
    basis = torch.eye(head_width).to(like)[None, :, None].expand(1, -1, grid.tokens, -1)
    turned = rearrange(position.rotate(basis)[0, :, grid.prefix :].float(), "heads n k -> n (heads k)")
    return (turned if queries is None else turned[queries]) @ turned.mT / head_width
