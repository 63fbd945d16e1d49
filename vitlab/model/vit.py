"""The Vision Transformer: stem -> position -> blocks -> norm -> pool -> head."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitlab.config.errors import ConfigError
from vitlab.model.attention import Attention
from vitlab.model.block import Block, Residual
from vitlab.model.dropout import Dropout
from vitlab.model.grid import Grid
from vitlab.model.head import Linear
from vitlab.model.init import authors
from vitlab.model.mlp import Mlp, SwiGlu
from vitlab.model.objective import Classify
from vitlab.model.pool import Cls, Pool
from vitlab.model.position import Learned1d, Position
from vitlab.model.stem import Patches, Stem


class ViT(nn.Module):
    """An image classifier made of parts ("An Image is Worth 16x16 Words", Dosovitskiy et al. 2021).

    Every part is given as a factory: a class, or a `functools.partial` of one with the user's choices. The ViT adds the
    arguments that it knows: the width, the heads, the token grid.

    Args:
        image_size: height and width of an image in pixels; one number for a square.
        channels: colour channels of an image.
        classes: number of classes.
        patch: side of a patch in pixels.
        width: channels of a token (the paper's hidden size D).
        depth: number of blocks (layers L); with 0 the model is its stem, pool and head: a plain ResNet.
        heads: attention heads a block (k).
        registers: learned tokens whose outputs are not used (Darcet et al. 2024).
        dropout: dropout probability after every dense layer except qkv, and after the positions (the paper's Table 3).
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
        layer_scale: initial scale of each residual branch; None is off.
        final_norm: whether the tokens are normalised before the pool.
        epsilon: added to the variance in every layer normalisation.

    Raises:
        ConfigError: values that make no sense together; each part names its own.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int],
        channels: int,
        classes: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        registers: int = 0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        final_norm: bool = True,
        epsilon: float = 1e-6,
        stem: Callable[..., Stem] = Patches,
        position: Callable[..., Position] = Learned1d,
        attention: Callable[..., Attention] = Attention,
        mlp: Callable[..., Mlp | SwiGlu] = Mlp,
        pool: Callable[..., Pool] = Cls,
        head: Callable[..., Linear] = Linear,
        objective: Callable[..., Classify] = Classify,
        init: Callable[["ViT"], None] | None = None,
    ):
        super().__init__()
        for name, value, least in (
            ("width", width, 1),
            ("depth", depth, 0),
            ("heads", heads, 1),
            ("registers", registers, 0),
            ("epsilon", epsilon, 0.0),
        ):
            if not value >= least:
                raise ConfigError(f"model.{name}={value}: must be at least {least:g}")
        for name, value in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= value < 1:
                raise ConfigError(f"model.{name}={value}: a probability must be at least 0 and below 1")
        if isinstance(image_size, int):
            image_size = (image_size, image_size)

        self.stem = stem(image_size=image_size, channels=channels, width=width, patch=patch)
        self.pool = pool(width=width, heads=heads)
        prefix = self.pool.prefix + registers
        self.prefix = nn.Parameter(torch.zeros(prefix, width)) if prefix else None
        self.grid = Grid(self.stem.grid.height, self.stem.grid.width, prefix)

        if depth == 0 and prefix:
            raise ConfigError(
                f"model.depth=0: no block shows the image to class token or registers ({prefix} here): use"
                " model/pool=gap or model/pool=map, with model.registers=0"
            )

        def place() -> Position:
            return position(width=width, head_width=width // heads, grid=self.grid)

        def residual(branch: nn.Module, layer: int) -> Residual:
            rate = drop_path * layer / max(1, depth - 1)
            return Residual(branch, width=width, layer_scale=layer_scale, drop_rate=rate, epsilon=epsilon)

        attends: list[Attention] = []

        def block(layer: int) -> Block:
            attends.append(attention(width=width, heads=heads, output_dropout=dropout))
            return Block(residual(attends[layer], layer), residual(mlp(width=width, dropout=dropout), layer))

        self.blocks = nn.ModuleList(block(layer) for layer in range(depth))
        first = place()
        self.positions = nn.ModuleList([first])
        if first.at == "every_block":
            self.positions.extend(place() for _ in range(depth - 1))
        if depth == 0 and first.at != "stem" and type(first) is not Position:
            raise ConfigError(
                f"model.depth=0: there is no block that {type(first).__name__} positions could enter: use"
                " model/position=none, or learned_1d, learned_2d or sincos_2d with model.position.at=stem"
            )
        for layer, attend in enumerate(attends):
            attend.place(self.grid, layer, self.position(layer))
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=epsilon) if final_norm else nn.Identity()
        self.head = head(width=width, classes=classes)
        self.objective = objective(width=width, grid=self.grid, patch=patch, channels=channels)
        for part in (self.pool, self.head):
            part.requires_grad_(self.objective.classifies)
        (init or authors())(self)

    def forward(self, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b classes"]:
        """Logits of normalized images."""
        return self.classify(self.encode(self.stem(images)))

    def encode(self, patches: Float[Tensor, "b n d"], weights: list[Tensor] | None = None) -> Float[Tensor, "b t d"]:
        """The tokens after the last block, from patch embeddings; `weights` gains each layer's attention weights."""
        x = patches
        if self.prefix is not None:
            x = torch.cat((self.prefix.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1)
        if self.position(0).at == "stem":
            x = self.position(0).add(x)
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            position = self.position(layer)
            if position.at != "stem":
                x = position.add(x)
            x = block(x, position, weights)
        return self.norm(x)

    def classify(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b classes"]:
        """Logits, from the tokens after the last block."""
        features = self.pool(*tokens.split((self.grid.prefix, self.grid.patches), dim=1))
        return self.head(self.head.represent(features))

    def inspect(
        self, images: Float[Tensor, "b c y x"], *, attention: bool = False
    ) -> tuple[Float[Tensor, "b classes"], dict[str, Tensor]]:
        """Logits and, by name, the intermediate results.

        Args:
            images: normalized pixels.
            attention: whether `attention_0` ... are among the results: the weights of each layer (b heads t t), rows
                summing to 1.

        Returns:
            The logits; and `stem` (b n d), `with_position`, `block_0` ..., `encoded` (b t d), `pooled` and `pre_logits`
            (b d).

        Raises:
            ConfigError: attention is asked of a model that has none.
        """
        if attention and not self.blocks:
            raise ConfigError("model.depth=0: without a block there is no attention to look at: ask for intermediates")
        modules: dict[str, nn.Module] = {f"block_{layer}": block for layer, block in enumerate(self.blocks)}
        modules |= {"stem": self.stem, "with_position": self.dropout, "encoded": self.norm, "pooled": self.pool}
        seen: dict[str, Tensor] = {}
        weights: list[Tensor] | None = [] if attention else None
        hooks = [
            module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
            for name, module in modules.items()
        ]
        hooks.append(self.head.register_forward_pre_hook(lambda _, inputs: seen.update(pre_logits=inputs[0])))
        try:
            logits = self.classify(self.encode(self.stem(images), weights))
        finally:
            for hook in hooks:
                hook.remove()
        return logits, seen | {f"attention_{layer}": w for layer, w in enumerate(weights or [])}

    def position(self, layer: int) -> Position:
        """The position module of a block: its own, or the shared one."""
        module = self.positions[layer if len(self.positions) > 1 else 0]
        assert isinstance(module, Position)
        return module
