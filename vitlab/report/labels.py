"""Names beside the marks of a panel, each where it covers nothing.

adjustText was tried: it stops after a second of the machine's time, and of 24 random panels of 3 to 14 points it left a
name on a mark or an error bar in all, and out of the frame in 16.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.plotting import INK, SMALL, SOFT, any_letters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
PAD = 1.5  # points around a name: letters are a little wider in another format
NEAR = 9  # points from a mark, up to which no line leads to the name
ANGLES = np.deg2rad([0, 180, 45, -45, 135, -135, 90, -90, 22, -22, 158, -158, 67, -67, 113, -113])
DISTANCES = (5, NEAR, 14, 20, 27, 35, 44)


def place(axes: "Axes", names: Sequence[str], points: Sequence[tuple[float, float]], lines: Sequence[Any]) -> bool:
    """Writes each name where it covers no other name, mark or line and lies in the frame; none where one has no room.

    Args:
        axes: whose layout is settled.
        names: of the points.
        points: in the units of the data.
        lines: paths that are drawn, each a sequence of points (x, y) in these units.
    """
    unit = axes.figure.dpi / 72  # pixels a point
    frame = axes.get_window_extent()
    inside = np.array([frame.x0, frame.y0, frame.x1, frame.y1]) + 2 * unit * np.array([1, 1, -1, -1])
    at = axes.transData.transform(np.array(points, dtype=float).reshape(-1, 2))
    drawn = [around(at, 4 * unit)] + [around(along(axes.transData.transform(np.array(line))), unit) for line in lines]
    texts: list[Any] = [axes.text(0, 0, name, size=SMALL, parse_math=False, in_layout=False) for name in names]
    with any_letters():
        extents = [text.get_window_extent() for text in texts]
    sizes = [(extent.width + 2 * PAD * unit, extent.height + 2 * PAD * unit) for extent in extents]
    tries = [candidates(xy, size, unit) for xy, size in zip(at, sizes, strict=True)]
    free = [options[~covered(options, np.concatenate(drawn)) & within(options, inside)] for options in tries]
    order = sorted(range(len(names)), key=lambda i: len(free[i]))
    for _ in range(2 * len(names) + 1):  # who finds no room may choose earlier
        placed, lost = choose(order, free, at)
        if lost is None:
            break
        order.remove(lost)
        order.insert(0, lost)
    else:
        for text in texts:
            text.remove()
        return False
    back = axes.transData.inverted()
    for i, text in enumerate(texts):
        box = placed[i]
        text.set(
            position=back.transform((box[0] + PAD * unit, (box[1] + box[3]) / 2)), ha="left", va="center", color=INK
        )
        end = nearest(at[i], box)
        if np.hypot(*(end - at[i])) > (NEAR + 1) * unit:
            axes.plot(
                *zip(points[i], back.transform(end), strict=True),
                color=SOFT,
                lw=0.5,
                zorder=1,
                scalex=False,
                scaley=False,
            )
    return True


def candidates(at: np.ndarray, size: tuple[float, float], unit: float) -> np.ndarray:
    """Boxes (left, bottom, right, top) around a point, in pixels; the nearest first."""
    wide, high = size
    found = []
    for distance in DISTANCES:
        for angle in ANGLES:
            x, y = at + distance * unit * np.array([np.cos(angle), np.sin(angle)])
            left = x - wide * (1 - np.cos(angle)) / 2
            bottom = y - high * (1 - np.sin(angle)) / 2
            found.append((left, bottom, left + wide, bottom + high))
    return np.array(found)


def choose(
    order: Sequence[int], free: Sequence[np.ndarray], at: np.ndarray
) -> tuple[dict[int, np.ndarray], int | None]:
    """The first free box of each name in this order; and the first name that has none."""
    placed: dict[int, np.ndarray] = {}
    taken = np.empty((0, 4))
    for i in order:
        options = free[i][~covered(free[i], taken)]
        for box in options:
            leader = around(along(np.array([at[i], nearest(at[i], box)])), 0.5)
            others = np.concatenate([around(np.delete(at, i, axis=0), 5), np.array([*placed.values()]).reshape(-1, 4)])
            if not covered(leader, others).any():
                placed[i] = box
                taken = np.concatenate([taken, box[None], leader])
                break
        else:
            return placed, i
    return placed, None


def nearest(point: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The point of a box that is nearest to another."""
    return np.clip(point, box[:2], box[2:])


def along(path: np.ndarray, step: float = 2) -> np.ndarray:
    """Points of a path, in pixels, every `step` of them."""
    path = np.clip(path, -1e4, 1e4)
    parts = [path[:1]]
    for start, end in pairwise(path):
        count = max(1, int(np.hypot(*(end - start)) // step))
        parts.append(start + (end - start) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(parts)


def around(points: np.ndarray, by: float) -> np.ndarray:
    """Boxes around points."""
    return np.concatenate([points - by, points + by], axis=1)


def covered(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which boxes overlap one of the others."""
    low, high = np.maximum(boxes[:, None, :2], others[None, :, :2]), np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.any(np.all(low < high, axis=2), axis=1)


def within(boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Which boxes lie in the frame."""
    return np.all((boxes[:, :2] >= frame[:2]) & (boxes[:, 2:] <= frame[2:]), axis=1)
