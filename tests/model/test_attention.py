"""Attention against torch's own and against the formula."""

import math

import pytest
import torch
from torch import nn

from vitlab.model import attention
from vitlab.model.attention import Attention, Axial, Products, explicit, fused
from vitlab.model.grid import Grid
from vitlab.model.mlp import Mlp
from vitlab.model.pool import Gap
from vitlab.model.position import Position, Relative, Rope
from vitlab.model.vit import ViT

GRID = Grid(3, 5, prefix=2)


def none(width=12, heads=3):
    return Position(width=width, head_width=width // heads, grid=GRID)


@pytest.mark.parametrize("kernel", ["explicit", "fused", "auto"])
def test_attention_equals_torchs_multihead_attention(kernel):
    ours = Attention(width=12, heads=3, kernel=kernel)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    x = torch.randn(4, GRID.tokens, 12)
    torch.testing.assert_close(ours(x, none()), theirs(x, x, x)[0], atol=1e-6, rtol=1e-5)


def test_weights_equal_torchs_and_are_those_before_dropout():
    ours = Attention(width=12, heads=3, dropout=0.5).train()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.qkv.weight.data, ours.qkv.bias.data
    x = torch.randn(4, GRID.tokens, 12)
    weights: list[torch.Tensor] = []
    ours(x, none(), weights)
    torch.testing.assert_close(weights[0], theirs(x, x, x, average_attn_weights=False)[1])


def test_explicit_attention_is_the_formula():
    q, k, v = torch.randn(3, 2, 3, 7, 5).unbind()
    expected = torch.softmax(torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(5), dim=-1)
    out, weights = explicit(q, k, v, None, 0.0)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(out, torch.einsum("bhnm,bhmd->bhnd", expected, v))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_products_head_by_head_are_explicit_attention_forward_and_backward(precision):
    close = {"atol": 1e-5, "rtol": 1e-5} if precision == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    stacked = torch.randn(2, 7, 3, 3, 4).to(precision).permute(2, 0, 3, 1, 4)  # as the projection leaves it
    one, two = (stacked.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
    change = torch.randn(2, 3, 7, 4).to(precision)
    out, expected = Products.apply(one), explicit(*two, None, 0.0)[0]
    torch.testing.assert_close(out, expected, **close)
    out.backward(change)
    expected.backward(change)
    torch.testing.assert_close(one.grad, two.grad, **close)


def test_attention_takes_the_products_where_a_head_has_enough_to_do(monkeypatch):
    ours, x = Attention(width=12, heads=3, kernel="explicit"), torch.randn(4, GRID.tokens, 12)
    expected = ours(x, none())
    taken = []
    monkeypatch.setattr(attention, "WORTHY", 4 * GRID.tokens * 4)
    monkeypatch.setattr(Products, "apply", lambda qkv: taken.append(qkv.shape) or explicit(*qkv, None, 0.0)[0])
    torch.testing.assert_close(ours(x, none()), expected)
    ours(x[1:], none())
    assert taken == [(3, 4, 3, GRID.tokens, 4)]


def test_products_gradient_is_the_slope():
    qkv = torch.randn(3, 2, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Products.apply, qkv)


def test_fused_and_explicit_attention_agree_forward_and_backward():
    for bias in (None, torch.randn(2, 3, 7, 7)):
        inputs = [torch.randn(2, 3, 7, 4, requires_grad=True) for _ in range(3)]
        one = explicit(*inputs, bias, 0.0)[0]
        two = fused(*inputs, bias, 0.0)
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        upstream = torch.randn_like(one)
        for a, b in zip(
            torch.autograd.grad(one, inputs, upstream), torch.autograd.grad(two, inputs, upstream), strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_dropout_acts_on_the_weights_in_training_only():
    attention = Attention(width=12, heads=3, dropout=0.5)
    x = torch.randn(2, GRID.tokens, 12)
    attention.train()
    assert not torch.allclose(attention(x, none()), attention(x, none()))
    attention.eval()
    torch.testing.assert_close(attention(x, none()), attention(x, none()))


def test_qk_norm_makes_logits_blind_to_the_scale_of_queries_and_keys():
    attention = Attention(width=12, heads=3, qk_norm=True, qkv_bias=False)
    x = torch.randn(2, GRID.tokens, 12)
    before: list[torch.Tensor] = []
    attention(x, none(), before)
    attention.qkv.weight.data[:24] *= 10
    after: list[torch.Tensor] = []
    attention(x, none(), after)
    torch.testing.assert_close(before[0], after[0], atol=1e-3, rtol=1e-3)


def test_qkv_bias_is_a_value():
    assert Attention(width=12, heads=3, qkv_bias=False).qkv.bias is None
    assert Attention(width=12, heads=3, qkv_bias=True).qkv.bias is not None


def test_relative_position_biases_both_kernels_alike():
    position = Relative(width=12, head_width=4, grid=GRID)
    nn.init.normal_(position.table)
    x = torch.randn(2, GRID.tokens, 12)
    one, two = Attention(width=12, heads=3, kernel="explicit"), Attention(width=12, heads=3, kernel="fused")
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(x, position), two(x, position), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one(x, position), one(x, none()))


def test_values_are_not_rotated():
    position = Rope(width=12, head_width=4, grid=GRID)
    attention = Attention(width=12, heads=3)
    attention.qkv.weight.data[:24] = 0  # all logits equal: the mean of the values
    attention.qkv.bias.data[:24] = 0
    x = torch.randn(2, GRID.tokens, 12)
    torch.testing.assert_close(attention(x, position), attention(x, none()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["exact", "tanh"])
def test_gelu_is_its_formula(form):
    x = torch.linspace(-5, 5, 101)
    if form == "tanh":
        expected = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        expected = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    torch.testing.assert_close(Mlp(width=4, dropout=0.0, gelu=form).activation(x), expected, atol=1e-6, rtol=1e-5)


def test_auto_is_the_kernel_that_was_measured_to_be_faster():
    def chosen(tokens, head_width, device="cpu", full=True, plain=True):
        attention = Attention(width=2 * head_width, heads=2)
        return attention.chosen(tokens=tokens, device=device, full=full, plain=plain)

    assert chosen(65, 16) == "explicit"
    assert chosen(257, 16) == "fused"
    assert chosen(145, 64) == "explicit"
    assert chosen(197, 64) == "fused"
    assert chosen(257, 16, plain=False) == "explicit"
    assert chosen(257, 16, full=False) == "explicit"
    assert chosen(17, 64, device="cuda") == "fused"
    assert Attention(width=8, heads=2, kernel="explicit").chosen(tokens=99, device="cuda", full=True, plain=True) == (
        "explicit"
    )
    torch.manual_seed(0)
    auto = Attention(width=12, heads=3)
    x = torch.randn(2, 40, 12, requires_grad=True)
    position = Position(width=12, head_width=4, grid=Grid(5, 8, prefix=0))
    one, seen = auto(x, position), []
    (gradient,) = torch.autograd.grad(one.square().sum(), x)
    auto.kernel = "explicit"
    other = auto(x, position, seen)
    assert torch.allclose(one, other, atol=1e-6)
    assert torch.allclose(gradient, torch.autograd.grad(other.square().sum(), x)[0], atol=1e-5)
    assert seen[0].shape == (2, 3, 40, 40)


# --- axial ------------------------------------------------------------------------------------------------------------

LATTICE = Grid(3, 5)


def axial(layer, lattice=LATTICE, **values):
    """Axial attention where the ViT would place it, and full attention with the same weights."""
    ours, full = Axial(width=12, heads=3, **values), Attention(width=12, heads=3, **values)
    full.load_state_dict(ours.state_dict())
    ours.place(lattice, layer, Position(width=12, head_width=4, grid=lattice))
    return ours, full


@pytest.mark.parametrize("kernel", ["explicit", "fused", "auto"])
@pytest.mark.parametrize("layer", [0, 1, 4, 5])
def test_axial_attention_is_full_attention_in_each_row_and_then_in_each_column(layer, kernel):
    ours, full = axial(layer, kernel=kernel)
    x = torch.randn(2, LATTICE.patches, 12)
    out = ours(x, none()).unflatten(1, (3, 5))
    lattice = x.unflatten(1, (3, 5))
    if layer % 2 == 0:
        expected = torch.stack([full(lattice[:, row], none()) for row in range(3)], dim=1)
    else:
        expected = torch.stack([full(lattice[:, :, column], none()) for column in range(5)], dim=2)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("layer", "lattice"), [(0, Grid(1, 7)), (1, Grid(7, 1))])
def test_axial_attention_on_a_single_line_is_full_attention(layer, lattice):
    ours, full = axial(layer, lattice)
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x, none()), full(x, none()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_axial_weights_are_those_of_all_tokens_and_zero_off_the_line(layer):
    ours, _ = axial(layer)
    x, weights = torch.randn(2, LATTICE.patches, 12), []
    out = ours(x, none(), weights)
    (seen,) = weights
    assert seen.shape == (2, 3, 15, 15)
    torch.testing.assert_close(seen.sum(-1), torch.ones(2, 3, 15))
    place = torch.arange(15)
    line = place // 5 if layer == 0 else place % 5
    assert torch.equal(seen > 0, (line[:, None] == line[None, :]).expand(2, 3, 15, 15))
    v = ours.qkv(x)[..., 24:].unflatten(-1, (3, 4)).transpose(1, 2)
    expected = ours.output((seen @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out, ours(x, none()), atol=1e-6, rtol=1e-5)


def test_axial_attention_takes_the_products_too_and_its_gradient_is_theirs(monkeypatch):
    for layer in (0, 1):
        ours, _ = axial(layer, kernel="explicit")
        x = torch.randn(2, LATTICE.patches, 12, requires_grad=True)
        change, gradients = torch.randn(2, LATTICE.patches, 12), []
        for worthy in (2**15, 1):
            monkeypatch.setattr(attention, "WORTHY", worthy)
            gradients.append(torch.autograd.grad(ours(x, none()), (x, ours.qkv.weight), change))
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
        assert gradients[0][0].abs().min() > 0


def test_two_axial_blocks_bring_every_token_to_every_other_and_one_does_not():
    for depth, reaches in ((1, 5), (2, 15)):
        model = ViT(
            image_size=(6, 10), channels=1, classes=3, patch=2, width=12, depth=depth, heads=3,
            pool=Gap, attention=Axial, position=Rope,
        ).eval()  # fmt: skip
        images = torch.randn(1, 1, 6, 10, requires_grad=True)
        _, seen = model.inspect(images)
        (gradient,) = torch.autograd.grad(seen["encoded"][0, 7].square().sum(), images)
        looked_at = gradient[0, 0].unflatten(0, (3, 2)).unflatten(2, (5, 2)).abs().sum(dim=(1, 3)) > 0
        assert looked_at.sum() == reaches
        assert looked_at[1].all()  # the row of token 7


def test_an_axial_vit_learns_a_batch_by_heart():
    torch.manual_seed(0)
    shape = {"image_size": (6, 10), "channels": 1, "classes": 3, "patch": 2, "width": 24, "depth": 4, "heads": 3}
    model = ViT(**shape, pool=Gap, attention=Axial)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, labels = torch.randn(12, 1, 6, 10), torch.arange(12) % 3
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert loss.item() < 0.05
