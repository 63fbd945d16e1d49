"""Randomness as a function of a key: the same key gives the same draws, wherever and whenever they are made."""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """A 63-bit seed from integers that are at least 0; any change of any of them gives an unrelated one."""
    low, high = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return int(low) | (int(high) >> 1 << 32)


@contextmanager
def seeded(*key: int) -> Generator[None]:
    """Seeds the global generators on the CPU for a while, and gives their states back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from it)
    reseed(*key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def reseed(*key: int) -> int:
    """Seeds the global generators on the CPU; gives the seed."""
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (timm draws from it)
    torch.default_generator.manual_seed(seed)
    return seed
