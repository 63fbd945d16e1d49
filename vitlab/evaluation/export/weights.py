"""A model's weights under the names of other libraries, timm and transformers, and under vitlab's own."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from safetensors import torch as safetensors
from torch import Tensor
from torch.func import functional_call

from vitlab.config.errors import Node
from vitlab.evaluation.export.formats import Reader
from vitlab.evaluation.load import Trained
from vitlab.evaluation.untrusted import read_config
from vitlab.model.mlp import Mlp, SwiGlu
from vitlab.model.pool import Cls, Map
from vitlab.model.vit import ViT
from vitlab.storage import checkpoint
from vitlab.storage.files import json_text
from vitlab.storage.run import Run

BICUBIC = 3  # Pillow's number
BLOCK = {  # the modules of a block, as timm names them, as ViT does in transformers, and as SigLIP does there
    "attention.norm": ("norm1", "layernorm_before", "layer_norm1"),
    "attention.branch.output": ("attn.proj", "attention.output.dense", "self_attn.out_proj"),
    "mlp.norm": ("norm2", "layernorm_after", "layer_norm2"),
    "mlp.branch.expand": ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    "mlp.branch.contract": ("mlp.fc2", "output.dense", "mlp.fc2"),
}
MAP = {"query": "q", "key_value": "kv", "output": "proj", "norm": "norm", "mlp.expand": "mlp.fc1"}
MAP |= {"mlp.contract": "mlp.fc2"}


def named(weights: Mapping[str, Tensor], of: str, name: str) -> dict[str, Tensor]:
    """Weight and bias (where there is one) of a module under another name."""
    pairs = ((f"{of}.{kind}", f"{name}.{kind}") for kind in ("weight", "bias"))
    return {new: weights[own] for own, new in pairs if own in weights}


def kernel(vit: ViT, trained: Trained) -> Tensor:
    """The projection of patches as a convolution's (d c p p)."""
    weight, channels = vit.state_dict()["stem.projection.weight"], len(trained.preprocess.mean)
    side = math.isqrt(weight.shape[1] // channels)
    return rearrange(weight, "d (c p q) -> d c p q", c=channels, p=side)


def table(vit: ViT) -> Tensor:
    """What positions add to each token at the stem (1 t d)."""
    return vit.position(0).add(torch.zeros(1, vit.grid.tokens, vit.head.output.in_features))


def save(folder: Path, weights: Mapping[str, Tensor], **files: Any) -> Path:
    """Writes `model.safetensors`, and each of the others as NAME.json."""
    file = folder / "model.safetensors"
    tensors = {name: value.detach().contiguous() for name, value in weights.items()}
    file.write_bytes(safetensors.save(tensors, {"format": "pt"}))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(f"{json_text(value)}\n", encoding="utf-8")
    return file


@torch.no_grad()
def write_timm(trained: Trained, folder: Path) -> tuple[Path, Reader]:
    """Writes a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    `config.json` has the arguments of `timm.create_model`: `architecture`, which gives all that is not among
    `model_args`. Dropout and stochastic depth, which belong to a training, are off.

    Returns:
        The file of weights, and timm's model of these arguments with them.
    """
    vit, ready = trained.model, trained.preprocess
    own, block, prefix = vit.state_dict(), cast(Any, vit.blocks[0]), vit.pool.prefix
    weights = {"patch_embed.proj.weight": kernel(vit, trained), "patch_embed.proj.bias": own["stem.projection.bias"]}
    weights["pos_embed"] = table(vit)
    if vit.prefix is not None:
        tokens = {"cls_token": vit.prefix[None, :prefix], "reg_token": vit.prefix[None, prefix:]}
        weights |= {name: value for name, value in tokens.items() if value.shape[1]}
    for i in range(len(vit.blocks)):
        for module, (name, *_) in {**BLOCK, "attention.branch.qkv": ("attn.qkv",)}.items():
            weights |= named(own, f"blocks.{i}.{module}", f"blocks.{i}.{name}")
        for path, name in (("attention", "ls1"), ("mlp", "ls2")):
            if (scale := own.get(f"blocks.{i}.{path}.scale")) is not None:
                weights[f"blocks.{i}.{name}.gamma"] = scale
    weights |= named(own, "norm", "norm") | named(own, "head.output", "head")
    if isinstance(vit.pool, Map):
        weights["attn_pool.latent"] = own["pool.probe"]
        for module, name in MAP.items():
            weights |= named(own, f"pool.{module}", f"attn_pool.{name}")
    mlp, width = block.mlp.branch, vit.head.output.in_features
    hidden = mlp.expand.out_features
    ratio = hidden / width
    arguments: Node = {
        "img_size": list(ready.resize.size),
        "patch_size": weights["patch_embed.proj.weight"].shape[-1],
        "in_chans": len(ready.mean),
        "embed_dim": width,
        "depth": len(vit.blocks),
        "num_heads": block.attention.branch.heads,
        "mlp_ratio": ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf),
        "qkv_bias": block.attention.branch.qkv.bias is not None,
        "init_values": 0.0 if block.attention.scale is None else 1.0,  # timm takes None for the architecture's own
        "class_token": prefix == 1,
        "reg_tokens": vit.grid.prefix - prefix,
        "global_pool": "map" if isinstance(vit.pool, Map) else "token" if prefix else "avg",
        "final_norm": "norm.weight" in own,
        "fc_norm": False,
    }
    if isinstance(mlp, Mlp):
        arguments["act_layer"] = "gelu" if mlp.activation.approximate == "none" else "gelu_tanh"
    config: Node = {
        "architecture": "vit_giant_patch14_dinov2" if isinstance(mlp, SwiGlu) else "vit_base_patch16_224",
        "num_classes": len(trained.classes),
        "num_features": width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": len(trained.classes),
            "input_size": [len(ready.mean), *ready.resize.size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": ready.resize.crop,
            "crop_mode": "center",
            "mean": list(ready.mean),
            "std": list(ready.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": list(trained.classes),
        },
    }
    file = save(folder, weights, config=config)
    import timm

    model = timm.create_model(config["architecture"], num_classes=config["num_classes"], **arguments)
    model.load_state_dict(safetensors.load_file(file))
    return file, model.eval()


@torch.no_grad()
def write_hugging_face(trained: Trained, folder: Path) -> tuple[Path, Reader | None]:
    """Writes a folder that transformers loads: ViT with a class token; SigLIP's image model for the mean of patches.

    Layer scale is multiplied into the weights before it. Dropout, which belongs to a training, is off.

    Returns:
        The file of weights, and transformers' model of the folder; None where transformers is not installed.
    """
    vit, ready = trained.model, trained.preprocess
    own, block = vit.state_dict(), cast(Any, vit.blocks[0])
    style = 1 if isinstance(vit.pool, Cls) else 2
    model = "vit" if style == 1 else "vision_model"
    layers = f"{model}.encoder.{'layer' if style == 1 else 'layers'}"
    projection = "patch_embeddings.projection" if style == 1 else "patch_embedding"
    attend = "attention.attention.{}" if style == 1 else "self_attn.{}_proj"
    weights = named(own, "stem.projection", f"{model}.embeddings.{projection}")
    weights[f"{model}.embeddings.{projection}.weight"] = kernel(vit, trained)
    if vit.prefix is not None:
        weights |= {
            f"{model}.embeddings.cls_token": vit.prefix[None],
            f"{model}.embeddings.position_embeddings": table(vit),
        }
    else:
        weights[f"{model}.embeddings.position_embedding.weight"] = table(vit)[0]
    for i in range(len(vit.blocks)):
        here = {
            name.removeprefix(f"blocks.{i}."): value for name, value in own.items() if name.startswith(f"blocks.{i}.")
        }
        for path, last in (("attention", "output"), ("mlp", "contract")):
            for kind in ("weight", "bias") if f"{path}.scale" in here else ():
                name = f"{path}.branch.{last}.{kind}"
                here[name] = torch.einsum("d...,d->d...", here[name], here[f"{path}.scale"])
        for module, names in BLOCK.items():
            weights |= named(here, module, f"{layers}.{i}.{names[style]}")
        qkv = here["attention.branch.qkv.weight"].chunk(3)
        zeros = torch.zeros(3 * len(qkv[0])) if style == 2 else None
        bias = here.get("attention.branch.qkv.bias", zeros)
        for number, name in enumerate(("query", "key", "value") if style == 1 else "qkv"):
            weights[f"{layers}.{i}.{attend.format(name)}.weight"] = qkv[number]
            if bias is not None:
                weights[f"{layers}.{i}.{attend.format(name)}.bias"] = bias.chunk(3)[number]
    weights |= named(own, "norm", f"{model}.{'layernorm' if style == 1 else 'post_layernorm'}")
    weights |= named(own, "head.output", "classifier")
    mlp, (side, _) = block.mlp.branch, ready.resize.size
    inside: Node = {
        "hidden_size": vit.head.output.in_features,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attention.branch.heads,
        "intermediate_size": mlp.expand.out_features,
        "hidden_act": "gelu" if mlp.activation.approximate == "none" else "gelu_pytorch_tanh",
        "layer_norm_eps": block.attention.norm.eps,
        "image_size": side,
        "patch_size": weights[f"{model}.embeddings.{projection}.weight"].shape[-1],
        "num_channels": len(ready.mean),
    }
    if style == 1:
        inside |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        inside["qkv_bias"] = block.attention.branch.qkv.bias is not None
    else:
        inside = {"vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **inside}}
    config: Node = {
        "architectures": ["ViTForImageClassification" if style == 1 else "SiglipForImageClassification"],
        "model_type": "vit" if style == 1 else "siglip",
        **inside,
        "id2label": {str(i): name for i, name in enumerate(trained.classes)},
        "label2id": {name: i for i, name in enumerate(trained.classes)},
    }
    processor = {
        "image_processor_type": "CLIPImageProcessor",  # the one that resizes the shorter side and crops the center
        "do_resize": True,
        "size": {"shortest_edge": round(side / ready.resize.crop)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(ready.mean),
        "image_std": list(ready.std),
        "do_convert_rgb": len(ready.mean) == 3,
    }
    file = save(folder, weights, config=config, preprocessor_config=processor)
    if find_spec("transformers") is None:
        return file, None
    from transformers import AutoModelForImageClassification, logging

    logging.set_verbosity_error()  # it warns of SigLIP's own defaults
    logging.disable_progress_bar()
    loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
    return file, lambda images: loaded(images).logits


def write_safetensors(trained: Trained, run: Run, folder: Path) -> tuple[Path, Reader]:
    """Writes `model.safetensors`, as a finished training does: what `init=FILE` takes, its facts in the metadata.

    Returns:
        The file, and the model with its weights.
    """
    file, saved = folder / "model.safetensors", checkpoint.load(run.best)
    facts = {"facts": saved["facts"], "wrote": saved.get("wrote"), "model": read_config(run)["model"]}
    checkpoint.export(file, trained.model.state_dict(), facts)
    weights = safetensors.load_file(file)
    return file, lambda images: functional_call(trained.model, weights, images)
