"""How other libraries name and shape the tensors of a ViT: a table for each, from their names to vitlab's."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of pixels in 0 ... 1
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LEAVES = {"weight": "weight", "bias": "bias", "kernel": "weight", "scale": "weight"}  # last word there -> here


def blocks(before: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names within each block, which stand behind a pattern whose only group is the block's number."""
    return {f"{before}(?:{name})": rf"blocks.\1.{ours}" for name, ours in names.items()}


def stacked(names: Iterable[str], ours: str) -> dict[str, str]:
    """The names of tensors that are one tensor here, in this order along its first axis."""
    return {name: f"{ours}#{number}" for number, name in enumerate(names)}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A library's names of the tensors of a ViT, and what it computes that no tensor shows.

    Args:
        library: its name.
        sign: pattern of a name that only its files have.
        names: pattern of a name without its last word (weight, bias, ...) -> the name here; `#2` is the third part of
            the tensor of that name, along its first axis.
        before: pattern of what may stand in front of every name.
        unused: pattern of names that the logits do not depend on.
        lacking: pattern of names -> what vitlab's ViT does not have.
        epsilon: of its layer normalisations.
        gelu: of its MLPs: exact or tanh.
        pixels: mean and standard deviation that images are normalised with.
        crop: fraction of each side that is kept of an image.
        flax: whether the tensors have the axes that JAX's Flax gives them: inputs before outputs, heads apart.
    """

    library: str
    sign: str
    names: Mapping[str, str]
    before: str = ""
    unused: str = "(?!)"
    lacking: Mapping[str, str] = field(default_factory=dict)
    epsilon: float = 1e-6
    gelu: str = "exact"
    pixels: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    crop: float = 1.0
    flax: bool = False

    def matches(self, pattern: str, name: str) -> re.Match | None:
        return re.fullmatch(f"(?:{self.before})?(?:{pattern})", name)

    def target(self, name: str) -> tuple[str, int] | None:
        """The name of a tensor here, and which part of that it is; None for one that vitlab's ViT does not have."""
        module, _, leaf = name.rpartition(".")
        module, leaf = (module, f".{LEAVES[leaf]}") if leaf in LEAVES else (name, "")
        for pattern, ours in self.names.items():
            if found := self.matches(pattern, module):
                target, _, part = found.expand(ours).partition("#")
                return target + leaf, int(part or 0)
        return None


TIMM = Layout(
    library="timm",  # and DeiT, DINO and MAE, which have its names
    sign="patch_embed.proj.weight",
    names={
        "patch_embed.proj": "stem.projection",
        **stacked(("cls_token", "dist_token", "reg_token|register_tokens"), "prefix"),
        "pos_embed": "positions.0.table",
        **blocks(
            r"blocks\.(\d+)\.",
            {
                "norm1": "attention.norm",
                "attn.qkv": "attention.branch.qkv",
                "attn.proj": "attention.branch.output",
                "ls1.gamma|gamma_1": "attention.scale",
                "norm2": "mlp.norm",
                "mlp.fc1": "mlp.branch.expand",
                "mlp.fc2": "mlp.branch.contract",
                "ls2.gamma|gamma_2": "mlp.scale",
            },
        ),
        "norm": "norm",
        "attn_pool.latent": "pool.probe",
        "attn_pool.q": "pool.query",
        "attn_pool.kv": "pool.key_value",
        "attn_pool.proj": "pool.output",
        "attn_pool.norm": "pool.norm",
        "attn_pool.mlp.fc1": "pool.mlp.expand",
        "attn_pool.mlp.fc2": "pool.mlp.contract",
        "pre_logits.fc": "head.hidden",
        "head": "head.output",
    },
    unused=r"head_dist\..*|mask_token|decoder.*",
    crop=0.9,
    lacking={
        r"fc_norm\..*": "normalises after the average over patches, vitlab's before it",
        r"norm_pre\..*": "normalises before the blocks, as CLIP does",
        r".*\.[qk]_norm\..*": "normalises queries and keys with another epsilon",
        r"patch_embed\.backbone\..*": "begins with timm's own ResNet; of Google's hybrids their .npz is read",
    },
)

HUGGING_FACE = Layout(
    library="Hugging Face",
    sign="embeddings.patch_embeddings.projection.weight",
    before=r"(?:vit|deit)\.",
    names={
        "embeddings.patch_embeddings.projection": "stem.projection",
        **stacked(("embeddings.cls_token", "embeddings.distillation_token"), "prefix"),
        "embeddings.position_embeddings": "positions.0.table",
        **blocks(
            r"(?:encoder\.layer|layers)\.(\d+)\.",  # on disk, and in memory since version 5
            {
                "layernorm_before": "attention.norm",
                **stacked(
                    (rf"attention\.(?:attention\.{name}|{name[0]}_proj)" for name in ("query", "key", "value")),
                    "attention.branch.qkv",
                ),
                r"attention\.(?:output\.dense|o_proj)": "attention.branch.output",
                "layernorm_after": "mlp.norm",
                r"intermediate\.dense|mlp\.fc1": "mlp.branch.expand",
                r"output\.dense|mlp\.fc2": "mlp.branch.contract",
            },
        ),
        "layernorm": "norm",
        "classifier|cls_classifier": "head.output",
    },
    unused=r"pooler\..*|embeddings\.mask_token|decoder\..*|distillation_classifier\..*",
    epsilon=1e-12,
    pixels=HALF,
)

TORCHVISION = Layout(
    library="torchvision",
    sign=r"encoder\.layers\.encoder_layer_0\.ln_1\.weight",
    names={
        "conv_proj": "stem.projection",
        "class_token": "prefix",
        "encoder.pos_embedding": "positions.0.table",
        **blocks(
            r"encoder\.layers\.encoder_layer_(\d+)\.",
            {
                "ln_1": "attention.norm",
                "self_attention.in_proj": "attention.branch.qkv",
                "self_attention.out_proj": "attention.branch.output",
                "ln_2": "mlp.norm",
                "mlp.0|mlp.linear_1": "mlp.branch.expand",
                "mlp.3|mlp.linear_2": "mlp.branch.contract",
            },
        ),
        "encoder.ln": "norm",
        "heads.pre_logits": "head.hidden",
        "heads.head": "head.output",
    },
    crop=0.875,
    lacking={r"conv_proj\.conv_.*": "begins with several convolutions"},
)

ATTENTION = r"MultiHeadDotProductAttention_\d\."
GOOGLE = Layout(
    library="Google",  # vision_transformer, and what of big_vision is the same model
    sign=r"embedding\.kernel",
    before=r"(?:opt\.target|params\.img|params)\.",
    unused=r"opt\.state\..*|step",
    lacking={r"MAPHead_0\..*": "pools by attention and an MLP with GELU's tanh form, vitlab's has the exact one"},
    names={
        "embedding": "stem.projection",
        "cls": "prefix",
        r"(?:Transformer\.posembed_input\.)?pos_embedding": "positions.0.table",
        **blocks(
            r"Transformer\.encoderblock_(\d+)\.",
            {
                "LayerNorm_0": "attention.norm",
                **stacked((ATTENTION + name for name in ("query", "key", "value")), "attention.branch.qkv"),
                ATTENTION + "out": "attention.branch.output",
                "LayerNorm_[12]": "mlp.norm",
                "MlpBlock_[03].Dense_0": "mlp.branch.expand",
                "MlpBlock_[03].Dense_1": "mlp.branch.contract",
            },
        ),
        "Transformer.encoder_norm": "norm",
        "pre_logits": "head.hidden",
        "head": "head.output",
        "conv_root": "stem.layers.0",
        "gn_root": "stem.layers.1",
        **{
            rf"block(\d+)\.unit(\d+)\.{name}": rf"stem.unit.\1.\2.{ours}"
            for name, ours in (
                *((f"conv{i + 1}", f"branch.{3 * i}") for i in range(3)),
                *((f"gn{i + 1}", f"branch.{3 * i + 1}") for i in range(3)),
                ("conv_proj", "shortcut.0"),
                ("gn_proj", "shortcut.1"),
            )
        },
    },
    gelu="tanh",
    pixels=HALF,
    flax=True,
)

LAYOUTS = (GOOGLE, HUGGING_FACE, TORCHVISION, TIMM)


def from_flax(name: str, x: Tensor) -> Tensor:
    """A tensor with Flax's axes in torch's: outputs before inputs, and heads side by side.

    Args:
        name: of the tensor here.
        x: a kernel (inputs, outputs), of heads (inputs, heads, k) or (heads, k, outputs), of a convolution (y, x,
            inputs, outputs); a bias or a scale of any shape; a token or a table, which stay.
    """
    if name.rpartition(".")[2] not in ("weight", "bias"):
        return x
    if x.ndim == 4 and max(x.shape[:3]) > 1:
        return x.permute(3, 2, 0, 1)
    if x.ndim == 2 and not name.endswith(".bias"):
        return x.T
    if x.ndim == 3 and not name.endswith(".bias"):
        return (x.flatten(0, 1) if name.endswith("output.weight") else x.flatten(1)).T
    return x.flatten()
