"""Weights of other libraries: logits equal to theirs, sizes found from shapes, and files that are refused."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from timm.layers import GroupNormAct, StdConv2dSame
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer_hybrid import HybridEmbed, _resnetv2
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT

from vitlab.evaluation.load import load

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def random_weights(model, std=0.2):
    """Weights that no part of a model ignores: random, with norms near 1."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean, std)
    return model.eval()


def timm(**options):
    return random_weights(TimmViT(**{"img_size": 32, "patch_size": 16, **SIZES, **options}))


def distilled(**options):
    return random_weights(VisionTransformerDistilled(img_size=32, patch_size=8, **SIZES))


def torchvision(**options):
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96}
    return random_weights(TorchvisionViT(**{**sizes, "num_classes": 5, **options}))


def hugging_face(**options):
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    return random_weights(
        ViTForImageClassification(ViTConfig(**{"image_size": 32, "patch_size": 8, **sizes, **options}))
    )


def google(model):
    """A timm model's weights by the published names of Google's .npz, in Flax's shapes."""
    state, heads = model.state_dict(), model.blocks[0].attn.num_heads
    width = model.embed_dim
    named = {"embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0)}
    named["embedding/bias"] = state["patch_embed.proj.bias"]
    if model.cls_token is not None:
        named["cls"] = state["cls_token"]
    named["Transformer/posembed_input/pos_embedding"] = state["pos_embed"]

    def dense(there, here):
        named[f"{there}/kernel"], named[f"{there}/bias"] = state[f"{here}.weight"].T, state[f"{here}.bias"]

    def norm(there, here):
        named[f"{there}/scale"], named[f"{there}/bias"] = state[f"{here}.weight"], state[f"{here}.bias"]

    for i in range(len(model.blocks)):
        at, of = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        norm(f"{at}/LayerNorm_0", f"{of}.norm1")
        norm(f"{at}/LayerNorm_2", f"{of}.norm2")
        dense(f"{at}/MlpBlock_3/Dense_0", f"{of}.mlp.fc1")
        dense(f"{at}/MlpBlock_3/Dense_1", f"{of}.mlp.fc2")
        attention = f"{at}/MultiHeadDotProductAttention_1"
        for name, weight, bias in zip(
            ("query", "key", "value"),
            state[f"{of}.attn.qkv.weight"].chunk(3),
            state[f"{of}.attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            named[f"{attention}/{name}/kernel"] = weight.T.reshape(width, heads, -1)
            named[f"{attention}/{name}/bias"] = bias.reshape(heads, -1)
        named[f"{attention}/out/kernel"] = state[f"{of}.attn.proj.weight"].T.reshape(heads, -1, width)
        named[f"{attention}/out/bias"] = state[f"{of}.attn.proj.bias"]
    norm("Transformer/encoder_norm", "norm")
    dense("head", "head")
    for name in [name for name in state if name.startswith("patch_embed.backbone.")]:
        there = name.removeprefix("patch_embed.backbone.")
        named[hybrid_name(there)] = state[name].permute(2, 3, 1, 0) if state[name].ndim == 4 else state[name]
    return {name: value.numpy() for name, value in named.items()}


def hybrid_name(name):
    """Google's name of a tensor of timm's ResNet."""
    words = name.split(".")
    leaf = words[-1] if words[-1] == "bias" else "kernel" if "conv" in words[-2] else "scale"
    if words[0] == "stem":
        return f"{'conv' if words[1] == 'conv' else 'gn'}_root/{leaf}"
    unit = f"block{int(words[1]) + 1}/unit{int(words[3]) + 1}"
    if words[4] == "downsample":
        return f"{unit}/{'conv' if words[5] == 'conv' else 'gn'}_proj/{leaf}"
    return f"{unit}/{words[4].replace('norm', 'gn')}/{leaf}"


def hybrid(layers=(1, 1), **options):
    """A hybrid of timm's with the epsilons of Google's code, which timm has not."""
    backbone = _resnetv2(layers)
    model = timm(patch_size=1, img_size=32, embed_layer=partial(HybridEmbed, backbone=backbone), **options)
    for module in model.modules():
        if isinstance(module, GroupNormAct):
            module.eps = 1e-6
        if isinstance(module, StdConv2dSame):  # with larger filters, whose scale does not matter, its epsilon does not
            module.weight.data *= 50
    return model


tanh = partial(nn.GELU, approximate="tanh")
NOTE = {"heads": 3, "image_size": 32}  # what nothing in these files says
CASES = {
    "timm": (timm, {}),
    "timm, a long grid of small patches": (timm, {"img_size": 64, "patch_size": 8}),
    "timm, gray": (timm, {"in_chans": 1}),
    "timm, average without class token": (timm, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    "timm, attention pool": (timm, {"class_token": False, "global_pool": "map"}),
    "timm, layer scale, no qkv bias, narrow MLP": (timm, {"init_values": 0.1, "qkv_bias": False, "mlp_ratio": 2.0}),
    "timm, registers without positions": (timm, {"reg_tokens": 4, "no_embed_class": True, "patch_size": 8}),
    "timm, registers with positions": (timm, {"reg_tokens": 3, "patch_size": 4}),
    "timm, class token without position": (timm, {"no_embed_class": True, "patch_size": 8}),
    "timm, no final norm": (timm, {"final_norm": False}),
    "timm, no positions": (timm, {"pos_embed": "none"}),
    "torchvision": (torchvision, {}),
    "torchvision, pre-logits": (torchvision, {"representation_size": 48}),
    "Hugging Face": (hugging_face, {}),
    "Hugging Face, not square, tanh, epsilon, 7 classes": (
        hugging_face,
        {
            "image_size": (32, 48),
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-3,
            "id2label": {i: f"kind {i}" for i in range(7)},
        },
    ),
    "Google": (timm, {"act_layer": tanh}),
    "Google, average": (timm, {"act_layer": tanh, "class_token": False, "global_pool": "avg", "fc_norm": False}),
    "Google, hybrid": (hybrid, {"act_layer": tanh}),
}


def write(folder, name, model):
    """A model's weights as its library has them; the path that `init` takes."""
    if name.startswith("Google"):
        np.savez(folder / "weights.npz", **google(model))
        return folder / "weights.npz"
    if name.startswith("Hugging Face"):
        model.save_pretrained(folder)
        return folder
    (folder / "weights.json").write_text(json.dumps(NOTE if "no positions" in name else {"heads": 3}))
    torch.save(model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_library(name, tmp_path):
    make, options = CASES[name]
    model = make(**options)
    ours = load(write(tmp_path, name, model))
    size, channels = ours.preprocess.resize.size, 1 if "gray" in name else 3
    images = torch.randn(4, channels, *size)
    with torch.no_grad():
        expected = model(images)
        expected = getattr(expected, "logits", expected)
        found = ours(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
