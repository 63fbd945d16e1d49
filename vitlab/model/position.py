"""Position embeddings. The base class is the kind `none`: a bag of patches.

A kind overrides one hook: `add` (to the tokens), `rotate` (queries and keys) or `bias` (on the attention logits).
"""

from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vitlab.config.errors import ConfigError
from vitlab.model.grid import Grid
from vitlab.model.part import Part, Resizing, interpolated

At = Literal["stem", "every_block", "every_block_shared"]


class Position(Part):
    """No position at all, and the contract of all kinds.

    The parameters that a kind owns are tables of vectors: they are drawn with `model.init.position_std`, have no weight
    decay, and are interpolated to another token grid if their length is the tokens, patches, rows or columns of it.

    Args:
        width: channels of a token.
        head_width: channels of a head.
        grid: the token grid.
    """

    at: At = "every_block_shared"  # one module serves every block; nothing enters at the stem

    def __init__(self, *, width: int, head_width: int, grid: Grid):
        super().__init__()
        self.grid = grid

    def add(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The tokens with their position added; called where `at` says."""
        return tokens

    def rotate(self, x: Float[Tensor, "b heads t k"]) -> Float[Tensor, "b heads t k"]:
        """Queries or keys, turned by their position; called in every block."""
        return x

    def bias(self, q: Float[Tensor, "b heads t k"]) -> Float[Tensor, "b heads t t"] | None:
        """What is added to the attention logits before they are scaled; called in every block."""
        return None

    def init_parameters(self, init: Any) -> None:
        for table in self.parameters(recurse=False):
            nn.init.normal_(table, std=init.position_std)

    def resized(self, name: str, value: Tensor, how: Resizing) -> Tensor | None:
        own, grid = getattr(self, name, None), self.grid
        if own is None or value.ndim != 2 or value.shape[1] != own.shape[1]:
            return None
        prefix = grid.prefix if len(own) == grid.tokens else 0
        if len(own) == prefix + grid.patches and how.prefix == grid.prefix:
            before = how.grid(len(value) - prefix)
            patches = interpolated(value[prefix:], before, (grid.height, grid.width), how.positions)
            return torch.cat((value[:prefix], patches))
        if len(own) in (grid.height, grid.width):
            return interpolated(value, (len(value), 1), (len(own), 1), how.positions)
        return None


class Learned1d(Position):
    """One learned vector a token, in raster order: the paper's default (Dosovitskiy et al. 2021, sec. 3.1).

    Args:
        at: where it enters (Table 8): at the stem, at every block with its own table, or with one shared table.
    """

    def __init__(self, *, width: int, head_width: int, grid: Grid, at: At = "stem"):
        super().__init__(width=width, head_width=head_width, grid=grid)
        self.at = at
        self.table = nn.Parameter(torch.zeros(grid.tokens, width))

    def add(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return tokens + self.table


class Learned2d(Position):
    """A learned half-width vector a row and one a column, concatenated (Dosovitskiy et al. 2021, D.4).

    The paper does not say what prefix tokens get; here each has a full-width vector of its own.

    Args:
        at: where it enters, see `Learned1d`.

    Raises:
        ConfigError: the width is odd.
    """

    def __init__(self, *, width: int, head_width: int, grid: Grid, at: At = "stem"):
        super().__init__(width=width, head_width=head_width, grid=grid)
        if width % 2:
            raise ConfigError(f"width={width} is odd, and learned 2-D positions need two halves: use {width + 1}")
        self.at = at
        self.prefix = nn.Parameter(torch.zeros(grid.prefix, width))
        self.rows = nn.Parameter(torch.zeros(grid.height, width // 2))
        self.columns = nn.Parameter(torch.zeros(grid.width, width // 2))

    def add(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        rows = self.rows[:, None, :].expand(-1, self.grid.width, -1)
        columns = self.columns[None, :, :].expand(self.grid.height, -1, -1)
        patches = rearrange(torch.cat((rows, columns), dim=-1), "h w d -> (h w) d")
        return tokens + torch.cat((self.prefix, patches))

    def resized(self, name: str, value: Tensor, how: Resizing) -> Tensor | None:
        return None if name == "prefix" else super().resized(name, value, how)


def check_base(base: float) -> None:
    """Raises ValueError where a ratio of wavelengths is none."""
    if not base > 0:
        raise ConfigError(f"model.position.base={base}: must be above 0; 100 is usual for RoPE, 10000 for sin-cos")


class SinCos2d(Position):
    """Fixed sines and cosines of row and column, a quarter of the width each (Chen et al. 2021, MoCo v3).

    Prefix tokens get nothing added.

    Args:
        base: ratio of the longest to the shortest wavelength; dimensionless.
        at: where it enters, see `Learned1d`; a shared table and one a block are the same here.

    Raises:
        ConfigError: the width is not a multiple of 4.
    """

    table: Tensor

    def __init__(
        self,
        *,
        width: int,
        head_width: int,
        grid: Grid,
        base: float = 10000.0,
        at: Literal["stem", "every_block_shared"] = "stem",
    ):
        super().__init__(width=width, head_width=head_width, grid=grid)
        check_base(base)
        if width % 4:
            raise ConfigError(
                f"width={width} is not a multiple of 4, as sin-cos 2-D positions need: use {-(-width // 4) * 4}"
            )
        self.at = at
        quarter = width // 4
        frequency = base ** (-torch.arange(quarter) / max(1, quarter - 1))
        row = torch.arange(grid.height)[:, None, None] * frequency
        column = torch.arange(grid.width)[None, :, None] * frequency
        row, column = torch.broadcast_tensors(row, column)
        patches = torch.cat((column.sin(), column.cos(), row.sin(), row.cos()), dim=-1)
        table = torch.cat((torch.zeros(grid.prefix, width), rearrange(patches, "h w d -> (h w) d")))
        self.register_buffer("table", table, persistent=False)

    def add(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return tokens + self.table


class Relative(Position):
    """1-D relative attention: a learned key for each offset in raster order (Dosovitskiy et al. 2021, D.4).

    The logit of query q at p and the key at p' gains q . r[p - p']. Heads share the table; prefix tokens, which have
    no place in the raster, gain nothing.

    Args:
        at: `every_block` has its own table (the paper does not say; so do Shaw et al. 2018), or one is shared.
    """

    def __init__(
        self,
        *,
        width: int,
        head_width: int,
        grid: Grid,
        at: Literal["every_block", "every_block_shared"] = "every_block",
    ):
        super().__init__(width=width, head_width=head_width, grid=grid)
        self.at = at
        self.table = nn.Parameter(torch.zeros(2 * grid.patches - 1, head_width))

    def bias(self, q: Float[Tensor, "b heads t k"]) -> Float[Tensor, "b heads t t"]:
        n = self.grid.patches
        # Row p needs the offsets p - (n - 1) ... p, and has all 2n - 1 of them: flattening with one column too many and
        # cutting again moves each row one to the left of the row above it (Huang et al. 2018, Music Transformer).
        offsets = q[:, :, self.grid.prefix :] @ self.table.flip(0).T.to(q.dtype)
        offsets = nn.functional.pad(offsets, (0, 1)).flatten(2)
        offsets = nn.functional.pad(offsets, (0, n - 1))
        patches = offsets.unflatten(2, (n + 1, 2 * n - 1))[:, :, :n, n - 1 :]
        return nn.functional.pad(patches, (self.grid.prefix, 0, self.grid.prefix, 0))

    def resized(self, name: str, value: Tensor, how: Resizing) -> Tensor | None:
        return None  # offsets in raster order mean other places on another grid


class Rope(Position):
    """Rotates channel pairs by an angle that grows with row or column (axial RoPE, Heo et al. 2024).

    Half of a head's pairs turn with the row, half with the column. Prefix tokens stay as they are.

    Args:
        base: ratio of the fastest to the slowest rotation; dimensionless.

    Raises:
        ConfigError: the channels of a head are not a multiple of 4, or a base that is not above 0.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, *, width: int, head_width: int, grid: Grid, base: float = 100.0):
        super().__init__(width=width, head_width=head_width, grid=grid)
        check_base(base)
        if head_width % 4:
            raise ConfigError(
                f"RoPE turns the channels of a head in fours (a pair by row, a pair by column), and width={width} over"
                f" {width // head_width} heads gives {head_width}: use a multiple of 4 a head"
            )
        quarter = head_width // 4
        frequency = base ** (-torch.arange(quarter) / quarter)
        row = torch.arange(grid.height)[:, None, None] * frequency
        column = torch.arange(grid.width)[None, :, None] * frequency
        angles = rearrange(torch.cat(torch.broadcast_tensors(row, column), dim=-1), "h w k -> (h w) k")
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def rotate(self, x: Float[Tensor, "b heads t k"]) -> Float[Tensor, "b heads t k"]:
        prefix, patches = x.split((self.grid.prefix, self.grid.patches), dim=2)
        first, second = patches.chunk(2, dim=-1)
        turned = torch.cat((first * self.cos - second * self.sin, second * self.cos + first * self.sin), dim=-1)
        return torch.cat((prefix, turned.to(x.dtype)), dim=2)
