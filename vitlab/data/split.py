"""Stratified, seeded slices of a labelled set."""

import numpy as np


def stratified_split(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts `count` examples off, every class in its share, and gives the indices of both parts, sorted.

    Shares are rounded by largest remainder; the draw inside a class depends on the seed alone. A class-ordered file
    is therefore as good as a shuffled one.

    Args:
        labels: class of each example (n,).
        count: size of the first part, 0 to n.
        seed: of the draw.
    """
    assert 0 <= count <= len(labels), (count, len(labels))
    draw = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * count / len(labels)
    take = np.floor(exact).astype(int)
    order = np.lexsort((draw.random(len(classes)), -(exact - take)))
    take[order[: count - take.sum()]] += 1
    chosen = np.concatenate(
        [draw.permutation(np.flatnonzero(labels == c))[:t] for c, t in zip(classes, take, strict=True)]
    )
    mask = np.zeros(len(labels), dtype=bool)
    mask[chosen] = True
    return np.flatnonzero(mask), np.flatnonzero(~mask)
