"""Each kind of position, by what it promises."""

import pytest
import torch
from torch import nn

from vitlab.model.grid import Grid
from vitlab.model.position import Learned1d, Learned2d, Relative, Rope, SinCos2d

GRID = Grid(3, 5, prefix=2)


def place(index):
    return divmod(index, GRID.width)


def test_rope_leaves_prefix_tokens_as_they_are():
    rope = Rope(width=16, head_width=8, grid=GRID)
    x = torch.randn(2, 2, GRID.tokens, 8)
    torch.testing.assert_close(rope.rotate(x)[:, :, :2], x[:, :, :2])


def test_rope_keeps_lengths():
    rope = Rope(width=16, head_width=8, grid=GRID)
    x = torch.randn(2, 2, GRID.tokens, 8)
    torch.testing.assert_close(rope.rotate(x).norm(dim=-1), x.norm(dim=-1))


def test_rope_logits_depend_on_offsets_only():
    rope = Rope(width=16, head_width=8, grid=GRID)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, GRID.tokens, 8)
    logits = (rope.rotate(q) @ rope.rotate(k).transpose(-2, -1))[0, 0, 2:, 2:]
    by_offset: dict[tuple[int, int], float] = {}
    for i in range(GRID.patches):
        for j in range(GRID.patches):
            (row, column), (other_row, other_column) = place(i), place(j)
            offset = row - other_row, column - other_column
            assert logits[i, j].item() == pytest.approx(by_offset.setdefault(offset, logits[i, j].item()), abs=1e-5)
    assert len({round(value, 4) for value in by_offset.values()}) == len(by_offset)


def test_rope_knows_rows_from_columns():
    tall, wide = Rope(width=8, head_width=8, grid=Grid(4, 1)), Rope(width=8, head_width=8, grid=Grid(1, 4))
    x = torch.randn(1, 1, 1, 8).expand(1, 1, 4, 8)
    assert not torch.allclose(tall.rotate(x), wide.rotate(x))


def test_relative_bias_is_the_query_with_the_key_of_the_offset():
    relative = Relative(width=12, head_width=4, grid=GRID)
    nn.init.normal_(relative.table)
    q = torch.randn(2, 3, GRID.tokens, 4)
    bias = relative.bias(q)
    n = GRID.patches
    for p in range(n):
        for other in range(n):
            expected = q[:, :, 2 + p] @ relative.table[p - other + n - 1]
            torch.testing.assert_close(bias[:, :, 2 + p, 2 + other], expected)
    assert (bias[:, :, :2] == 0).all()
    assert (bias[:, :, :, :2] == 0).all()


def test_learned_2d_is_a_row_half_and_a_column_half():
    position = Learned2d(width=8, head_width=4, grid=GRID)
    for table in position.parameters():
        nn.init.normal_(table)
    added = position.add(torch.zeros(1, GRID.tokens, 8))[0]
    torch.testing.assert_close(added[:2], position.prefix)
    for index in range(GRID.patches):
        row, column = place(index)
        torch.testing.assert_close(added[2 + index], torch.cat((position.rows[row], position.columns[column])))


def test_learned_1d_has_a_row_for_every_token():
    position = Learned1d(width=8, head_width=4, grid=GRID)
    assert position.table.shape == (17, 8)


def test_sincos_is_that_of_moco_v3():
    position = SinCos2d(width=16, head_width=4, grid=GRID)
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    omega = 1 / 10000 ** (torch.arange(4) / 3)
    y, x = y.flatten()[:, None] * omega, x.flatten()[:, None] * omega
    expected = torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)
    added = position.add(torch.zeros(1, GRID.tokens, 16))[0]
    torch.testing.assert_close(added[2:], expected)
    assert (added[:2] == 0).all()
    assert list(position.parameters()) == []
