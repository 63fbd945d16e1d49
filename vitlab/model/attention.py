"""Attention: every token looks at every other (Vaswani et al. 2017; Dosovitskiy et al. 2021, App. A)."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from vitlab.config.errors import ConfigError
from vitlab.model.dropout import Dropout, Fill, Rate, fill_kept, fill_kept_torch, in_pack, is_off
from vitlab.model.dropout import dropout as drop
from vitlab.model.grid import Grid
from vitlab.model.part import Part
from vitlab.model.position import Position
from vitlab.model.stacked import over_models
from vitlab.model.stem import divisors

Queries = Float[Tensor, "b heads q k"]
Keys = Float[Tensor, "b heads t k"]
Weights = Float[Tensor, "b heads q t"]
Projected = Float[Tensor, "three b heads t k"]  # queries, keys and values


def explicit(
    q: Queries, k: Keys, v: Keys, bias: Weights | None, dropout: Rate, fill: Fill = fill_kept
) -> tuple[Queries, Weights]:
    """softmax((Q K^T + bias) / sqrt(d_k)) V, written out; and the weights."""
    scale = q.shape[-1] ** -0.5
    logits = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias * scale
    weights = logits.softmax(dim=-1, dtype=logits.dtype)
    return drop(weights, dropout, fill=fill) @ v, weights


class Products(Function):
    """`explicit` without bias and dropout for a CPU, head by head, its backward pass written out too.

    The products read each head where the projection has left it, and its gradient goes back to that place. Autograd
    would copy queries, keys and values for every product that they are in, to have them side by side. A model's
    training step takes 0.93 of the time at 33,000 numbers a head, 1.02 at 35,000 in fewer tokens, 1.09 at 8,700.
    """

    @staticmethod
    def forward(context: Any, qkv: Projected) -> Keys:
        _, b, heads, t, k = qkv.shape
        out, scale, none, seen = qkv.new_empty(b, t, heads, k), k**-0.5, qkv.new_empty(()), []
        for head, (q, keys, v) in enumerate(zip(*(each.unbind(1) for each in qkv), strict=True)):
            logits = torch.baddbmm(none, q, keys.mT, beta=0, alpha=scale)
            seen.append(logits.softmax(dim=-1, dtype=logits.dtype))
            out[:, :, head] = torch.bmm(seen[head], v)
        context.save_for_backward(qkv, *seen)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, change: Keys) -> Projected:
        qkv, *seen = context.saved_tensors
        _, b, heads, t, k = qkv.shape
        gradient, scale, none = qkv.new_empty(b, t, 3, heads, k), k**-0.5, qkv.new_empty(())
        for head, (q, keys, v) in enumerate(zip(*(each.unbind(1) for each in qkv), strict=True)):
            weights, back = seen[head], change[:, head]
            by_weights = torch.bmm(back, v.mT)
            by_logits = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            gradient[:, :, 0, head] = torch.baddbmm(none, by_logits, keys, beta=0, alpha=scale)
            gradient[:, :, 1, head] = torch.baddbmm(none, by_logits.mT, q, beta=0, alpha=scale)
            gradient[:, :, 2, head] = torch.bmm(weights.mT, back)
        return rearrange(gradient, "b t three heads k -> three b heads t k")


def of_all_models(attend: Callable[[Projected], Keys], qkv: Projected) -> Keys:
    """Attention of the images of all models of a pack as one batch: it has no weights of its own."""

    def together(of_each: Float[Tensor, "m three b heads t k"]) -> Float[Tensor, "m b heads t k"]:
        return attend(of_each.transpose(0, 1).flatten(1, 2)).unflatten(0, (len(of_each), -1))

    return over_models(together, qkv)


def fused(q: Queries, k: Keys, v: Keys, bias: Weights | None, dropout: float) -> Queries:
    """The same by torch's fused kernels, which never hold the weights in memory."""
    mask = None if bias is None else bias * q.shape[-1] ** -0.5
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


LONG = 160  # tokens; of more, the weights take longer to hold than to compute again
WORTHY = 2**15  # numbers of a head's queries; with fewer, a call takes longer than its product
MOST = 4096  # tokens up to which that, measured up to 577, is taken to hold


class Attention(Part):
    """Multi-head self-attention; `attend` is what another kind of attention replaces.

    Args:
        width: channels of a token.
        heads: parts that the width is cut into.
        output_dropout: dropout probability of the output's channels.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_norm: layer normalisation of each head's queries and keys (Dehghani et al. 2023, ViT-22B).
        dropout: dropout probability of the attention weights.
        kernel: explicit matrix products, torch's fused kernel, or auto: see `chosen`.

    Raises:
        ConfigError: the heads do not divide the width, or a dropout probability outside 0 ... 1.
    """

    stacked: ClassVar = {"qkv.weight": 3}

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        output_dropout: float = 0.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        dropout: float = 0.0,
        kernel: Literal["auto", "explicit", "fused"] = "auto",
    ):
        super().__init__()
        if heads < 1 or width % heads:
            fitting = ", ".join(str(d) for d in divisors(width))
            raise ConfigError(f"heads={heads} does not divide width={width}: use one of {fitting}")
        if not 0 <= dropout < 1:
            raise ConfigError(
                f"model.attention.dropout={dropout}: a dropout probability must be at least 0 and below 1"
            )
        self.heads = heads
        self.dropout: Rate = dropout
        self.kernel = kernel
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.output = nn.Linear(width, width)
        self.output_dropout = Dropout(output_dropout)

    def init_layers(self, init: Any) -> None:
        if not init.joint_qkv:
            for part in self.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part)

    def looks_at(self, grid: Grid) -> int:
        """The number of tokens that each token attends to."""
        return grid.tokens

    def weights_kept(self, grid: Grid, *, device: str, full: bool) -> int:
        """How many attention weights of an image a training step keeps for its backward pass, at least.

        Args:
            grid: the token grid.
            device: cpu, cuda, ...
            full: whether q, k and v are of 32 bits.
        """
        seen = self.looks_at(grid)
        kernel = self.chosen(tokens=seen, device=device, full=full, plain=True)
        return self.heads * grid.tokens * seen if kernel == "explicit" else 0

    def forward(
        self, x: Float[Tensor, "b t d"], position: Position, weights: list[Tensor] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Attends; a list given as `weights` gains this layer's attention weights (b heads t t), before dropout."""
        qkv = rearrange(self.qkv(x), "b t (three heads k) -> three b heads t k", three=3, heads=self.heads)
        q, k, v = qkv
        rotated_q, rotated_k = position.rotate(self.q_norm(q).to(v.dtype)), position.rotate(self.k_norm(k).to(v.dtype))
        if rotated_q is not q or rotated_k is not k:
            qkv = torch.stack((rotated_q, rotated_k, v))
        out = self.attend(qkv, position.bias(rotated_q), weights)
        return self.output_dropout(self.output(rearrange(out, "b heads t k -> b t (heads k)")))

    def place(self, grid: Grid, layer: int, position: Position) -> None:
        """Called by the ViT with the token grid, the number of this block and its position.

        Raises:
            ConfigError: this kind of attention cannot work there.
        """

    def attend(self, qkv: Projected, bias: Weights | None, weights: list[Tensor] | None) -> Keys:
        dropout = self.dropout if self.training else 0.0
        packed, drops = in_pack(), not is_off(dropout)
        plain, full, device = bias is None and not drops, qkv.dtype == torch.float32, qkv.device.type
        kernel = self.chosen(tokens=qkv.shape[-2], device=device, full=full, plain=plain)
        if weights is None and kernel == "explicit" and plain and device == "cpu":
            if packed:
                return of_all_models(Products.apply, qkv)
            if qkv[0, :, 0].numel() >= WORTHY:
                return Products.apply(qkv)
        q, k, v = qkv
        if weights is None and kernel == "fused" and packed and plain:
            return of_all_models(lambda qkv: fused(*qkv, None, 0.0), qkv)
        if weights is None and kernel == "fused" and not packed:
            return fused(q, k, v, bias, dropout if isinstance(dropout, float) else 0.0)
        out, seen = explicit(q, k, v, bias, dropout, fill_kept if kernel == "explicit" else fill_kept_torch)
        if weights is not None:
            weights.append(seen)
        return out

    def chosen(self, *, tokens: int, device: str, full: bool, plain: bool) -> Literal["explicit", "fused"]:
        """The kernel that is used: the configured one, or with auto the faster one in training.

        That is the fused one, but on a CPU in half precision, with few tokens, or with more than q, k and v. Training
        steps of four layers on two AVX2 cores in fp32, explicit over fused, heads 64 wide: 0.95 at 65 tokens, 1.00 at
        145, 1.06 at 197; 32 wide: 0.94 at 50, 0.97 at 145; 16 wide: 0.73 at 17, 0.86 at 65, and of attention alone 1.45
        at 257. In bf16 the fused backward pass takes several times as long, and with a bias or dropout torch has no
        fused kernel there.

        Args:
            tokens: of an image.
            device: cpu, cuda, ...
            full: whether q, k and v are of 32 bits.
            plain: whether there is neither bias nor dropout.
        """
        if self.kernel != "auto":
            return self.kernel
        many = LONG <= tokens <= MOST
        return "explicit" if device == "cpu" and not (plain and full and many) else "fused"


class Axial(Attention):
    """Attention along the rows of the token grid in one block, and along its columns in the next (Ho et al. 2019).

    The paper's axial block (D.6) is attention along rows, an MLP, attention along columns and an MLP: two blocks here,
    so that its Axial-ViT-B has `model.depth=24`. A last block without a partner goes along rows.

    Raises:
        ConfigError: in the ViT, tokens that stand in no row, or a position that enters as a bias of all logits.
    """

    grid: Grid
    rows: bool

    def looks_at(self, grid: Grid) -> int:
        return min(grid.height, grid.width)

    def place(self, grid: Grid, layer: int, position: Position) -> None:
        if grid.prefix:
            raise ConfigError(
                f"model/attention=axial goes along rows and columns, and class token or registers ({grid.prefix} here)"
                " stand in none: use model/pool=gap or model/pool=map, with model.registers=0"
            )
        if type(position).bias is not Position.bias:
            raise ConfigError(
                f"model/attention=axial has no logits from every token to every other, as the bias of"
                f" {type(position).__name__} has: use model/position=learned_1d, learned_2d, sincos_2d, rope or none"
            )
        self.grid, self.rows = grid, layer % 2 == 0

    def attend(self, qkv: Projected, bias: Weights | None, weights: list[Tensor] | None) -> Keys:
        height, width = self.grid.height, self.grid.width
        along: list[Tensor] | None = None if weights is None else []
        if self.rows:
            lines = rearrange(qkv, "three b heads (h w) k -> three (b h) heads w k", h=height)
            out = rearrange(super().attend(lines, None, along), "(b h) heads w k -> b heads (h w) k", h=height)
        else:
            lines = rearrange(qkv, "three b heads (h w) k -> three (b w) heads h k", w=width)
            out = rearrange(super().attend(lines, None, along), "(b w) heads h k -> b heads (h w) k", w=width)
        if weights is not None:
            weights.extend(self.among_all(seen) for seen in along or ())
        return out

    def among_all(self, seen: Float[Tensor, "lines heads n n"]) -> Float[Tensor, "b heads t t"]:
        """The weights of all lines as those of all tokens: none for a token of another line."""
        height, width = self.grid.height, self.grid.width
        if self.rows:
            rows = rearrange(seen, "(b h) heads q t -> b heads h q t", h=height)
            same = torch.eye(height, dtype=seen.dtype, device=seen.device)
            return rearrange(torch.einsum("bnhqt,hg->bnhqgt", rows, same), "b n h q g t -> b n (h q) (g t)")
        columns = rearrange(seen, "(b w) heads q t -> b heads w q t", w=width)
        same = torch.eye(width, dtype=seen.dtype, device=seen.device)
        return rearrange(torch.einsum("bnwqt,wg->bnqwtg", columns, same), "b n q w t g -> b n (q w) (t g)")
