"""How fast is a training step? `python -m vitlab.bench` measures vitlab's ViT beside four others of the same shape.

All run in one process, one after the other in every round, under the same autocast and the same optimizer; medians are
printed, and each as a ratio to vitlab's. The others come with the dependency group `bench`; one that is missing is
said, not fatal.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitlab.model.count import parameters
from vitlab.model.vit import ViT
from vitlab.parallel import describe, resolve

Shape = argparse.Namespace


def vitlab(shape: Shape) -> nn.Module:
    return ViT(
        image_size=shape.size,
        channels=3,
        classes=10,
        patch=shape.patch,
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
    )


def timm(shape: Shape) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=shape.size,
        patch_size=shape.patch,
        num_classes=10,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
    )


def torchvision(shape: Shape) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=shape.size,
        patch_size=shape.patch,
        num_layers=shape.depth,
        num_heads=shape.heads,
        hidden_dim=shape.width,
        mlp_dim=4 * shape.width,
        num_classes=10,
    )


def transformers(shape: Shape) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification  # ty: ignore[import-not-found]

    return ViTForImageClassification(
        ViTConfig(
            image_size=shape.size,
            patch_size=shape.patch,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.width,
            num_labels=10,
        )
    )


def vit_pytorch(shape: Shape) -> nn.Module:
    from vit_pytorch import ViT as Lucidrains  # ty: ignore[import-not-found]

    return Lucidrains(
        image_size=shape.size,
        patch_size=shape.patch,
        num_classes=10,
        dim=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        dim_head=shape.width // shape.heads,
        mlp_dim=4 * shape.width,
    )


PEERS: dict[str, Callable[[Shape], nn.Module]] = {
    "vitlab": vitlab,
    "timm": timm,
    "torchvision": torchvision,
    "transformers": transformers,
    "vit-pytorch": vit_pytorch,
}


def logits(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits


def training_step(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], None]:
    """A whole step: forward, loss, backward, AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]

    def step() -> None:
        with torch.autocast(images.device.type, dtype, enabled=precision != "fp32"):
            out = logits(model(images))
        functional.cross_entropy(out.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if images.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure(shape: Shape) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve(shape.precision, device)
    images = torch.randn(shape.batch, 3, shape.size, shape.size, device=device)
    labels = torch.randint(0, 10, (shape.batch,), device=device)
    steps, counts = {}, {}
    for name, make in PEERS.items():
        try:
            model = make(shape).to(device)
        except ImportError as error:
            print(f"{name}: not installed ({error}); uv sync --group bench brings it")
            continue
        counts[name] = parameters(model)
        steps[name] = training_step(model, images, labels, precision)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(shape.warmup + shape.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if turn >= shape.warmup:
                seconds[name].append(time.perf_counter() - began)
    ours = statistics.median(seconds["vitlab"])
    print(f"training step, {precision}, batch {shape.batch}, {shape.size} px, patch {shape.patch}, {describe(device)}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:<14} {middle * 1e3:9.1f} ms   {middle / ours:5.2f} x vitlab   {counts[name]:>11,} parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m vitlab.bench", description=__doc__)
    for key, value in {"size": 32, "patch": 4, "batch": 64, "width": 192, "depth": 12, "heads": 3}.items():
        parser.add_argument(f"--{key}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    measure(parser.parse_args())
