"""Random numbers as a function of a key: the same on any process and device, in any order."""

import random
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import mtrand

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio: SplitMix64's step
STAND_IN = np.random.MT19937(0)  # for NumPy's global generator, in `numpy_seeded`


@lru_cache
def seed_of(*key: int) -> int:
    """A 63-bit seed from non-negative integers; another integer gives an unrelated seed."""
    low, high = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return int(low) | (int(high) >> 1 << 32)


def uniforms(
    seed: int, rounds: Int[np.ndarray, " b"], indices: Int[np.ndarray, " b"], draws: int
) -> Float[np.ndarray, "b draws"]:
    """Uniform numbers in 0 ... 1 for each (seed, round, index), by SplitMix64 (Steele et al. 2014) as a hash."""
    state = mix_bits(np.uint64(seed_of(seed)) + rounds.astype(np.uint64) * GOLDEN)
    state = mix_bits(state + indices.astype(np.uint64) * GOLDEN)
    bits = mix_bits(state[:, None] + np.arange(1, draws + 1, dtype=np.uint64) * GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53


def mix_bits(bits: np.ndarray) -> np.ndarray:
    """The mixing function of SplitMix64: each output bit depends on all input bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def normal_keys(seed: int, rows: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
    """The key of the normal numbers of each (seed, row)."""
    return mix_bits(np.uint64(seed_of(seed, 1)) + rows.astype(np.uint64) * GOLDEN).view(np.int64)


def normals(keys: Int[torch.Tensor, " b"], count: int) -> Float[torch.Tensor, "b count"]:
    """Normal numbers for each of `normal_keys`, computed on their device (Box and Muller 1958)."""
    pairs = torch.arange(1, -(-count // 2) + 1, device=keys.device) * int(GOLDEN.astype(np.int64))
    bits = keys[:, None] + pairs
    for shift, factor in (
        (30, 0xBF58476D1CE4E5B9),
        (27, 0x94D049BB133111EB),
        (31, 1),
    ):  # `mix_bits`, with signed numbers
        bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * (factor - (factor >> 63 << 64))
    one, two = (((bits >> shift & 0xFFFFFF).float() + 0.5) * 2.0**-24 for shift in (40, 8))
    radius, angle = (-2 * one.log()).sqrt(), 2 * torch.pi * two
    return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :count]


@contextmanager
def seeded(*key: int) -> Generator[None]:
    """Context in which the global generators on the CPU are seeded; restores their states at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from it)
    reseed(*key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextmanager
def numpy_seeded(*key: int) -> Generator[None]:
    """The same for NumPy's global generator alone, which another one stands in for: its state is slow to copy.

    Of the global one, the second of a pair of normal numbers is lost.
    """
    generator = mtrand.get_bit_generator()
    mtrand.set_bit_generator(STAND_IN)
    np.random.seed(seed_of(*key) & 0xFFFFFFFF)  # noqa: NPY002
    try:
        yield
    finally:
        mtrand.set_bit_generator(generator)


def reseed(*key: int) -> int:
    """Seeds the global generators on the CPU, and returns the seed."""
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 (timm draws from it)
    torch.default_generator.manual_seed(seed)
    return seed
