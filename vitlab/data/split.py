"""Stratified, seeded splits and folds."""

import numpy as np


def stratified_split(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of a stratified sample of `count` examples, and of the rest.

    Counts of the classes are rounded by largest remainder. Which examples of a class are taken depends on the seed.

    Args:
        labels: class of each example (n,).
        count: size of the sample, 0 to n.
        seed: seed of the sample.
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


def stratified_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each example (n,), 0 to `folds` - 1: sizes differ by 1 at most, and those of each class too.

    Args:
        labels: class of each example (n,).
        folds: number of folds.
        seed: seed of the folds.
    """
    draw = np.random.default_rng(seed)
    found = np.empty(len(labels), dtype=np.int64)
    found[np.lexsort((draw.random(len(labels)), labels))] = np.arange(len(labels)) % folds
    return found
