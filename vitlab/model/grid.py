"""The token grid."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """`height` x `width` patches in raster order, behind `prefix` other tokens (class token, registers)."""

    height: int
    width: int
    prefix: int = 0

    @property
    def patches(self) -> int:
        return self.height * self.width

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches
