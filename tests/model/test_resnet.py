"""ResNet, before a ViT and alone: against timm's and torchvision's, the published counts, and its own promises."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitlab.config.build import assemble, build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.model import count
from vitlab.model.attention import Axial
from vitlab.model.pool import Gap
from vitlab.model.position import Position
from vitlab.model.resnet import Bottleneck, ResNet, StandardisedConv, norm
from vitlab.model.vit import ViT
from vitlab.sweep.plan import flops
from vitlab.system import footprint, memory
from vitlab.system.distributed import single_process
from vitlab.system.footprint import BLOCK
from vitlab.system.parallelize import parallelize
from vitlab.training import optimizer as optimizer_of
from vitlab.training.optimizer import build_optimizer
from vitlab.training.setup import prepare

SMALL = partial(ResNet, blocks=(1, 1), widen=0.25, root="small")


def resnet(**parts):
    """A small ResNet without a ViT, on a lattice of 3 x 5."""
    given = {"image_size": (6, 10), "channels": 2, "classes": 7, "patch": 2, "width": 128, "depth": 0, "heads": 1}
    given |= {"stem": partial(SMALL, project=False), "position": Position, "pool": Gap, "final_norm": False}
    return ViT(**(given | parts))


def hybrid(**parts):
    """The same before two blocks."""
    given = {"image_size": (6, 10), "channels": 2, "classes": 7, "patch": 2, "width": 16, "depth": 2, "heads": 2}
    return ViT(**(given | {"stem": SMALL} | parts))


def composed(words, size=224, classes=1000):
    """The model that these words choose, without memory."""
    words = ["dataset=synthetic", f"dataset.image_size={size}", *words]
    make = assemble(check(compose(words)[0]))["model"]
    with torch.device("meta"):
        return make(image_size=(size, size), channels=3, classes=classes)


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (
            ["model=resnet50"],
            25_557_032,
        ),  # as torchvision publishes them: a norm of groups has as many as one of batches
        (["model=resnet101"], 44_549_160),
        (["model=resnet152"], 60_192_808),
        (["model=resnet50", "model.stem.widen=2", "model.width=4096"], 98_004_072),
    ],
)
def test_resnets_have_the_published_parameter_counts(words, parameters):
    assert count.parameters(composed([*words, "patch=p32"])) == parameters


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["model=base", "model/stem=resnet50_16", "patch=p16"], "vit_base_r50_s16_224"),
        (["model=large", "model/stem=resnet50", "patch=p32"], "vit_large_r50_s32_224"),
        (["model=small", "model/stem=resnet26", "patch=p32"], "vit_small_r26_s32_224"),
    ],
)
def test_hybrids_have_as_many_parameters_as_timms(words, name):
    from timm import create_model

    with torch.device("meta"):
        theirs = create_model(name, num_classes=1000)
    assert count.parameters(composed(words)) == count.parameters(theirs)


def test_flops_of_resnet_50_are_those_of_the_literature():
    model = composed(["model=resnet50", "patch=p32"])
    assert count.flops(model, (3, 224, 224)) == pytest.approx(2 * 4.089e9, rel=0.001)  # torchvision's multiply-adds


@pytest.mark.parametrize("make", [resnet, hybrid])
def test_flops_are_those_that_torchs_counter_finds(make):
    from torch.utils.flop_counter import FlopCounterMode

    model = make().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 2, 6, 10))
    assert count.flops(model, (2, 6, 10)) == counter.get_total_flops()


def test_the_feature_map_equals_timms_with_the_same_weights():
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    theirs = ResNetV2(
        layers=[2, 1, 1], num_classes=0, global_pool="", preact=False, conv_layer=partial(StdConv2d, eps=1e-10)
    ).eval()
    ours = ResNet(image_size=(32, 48), channels=3, width=1024, patch=16, blocks=(2, 1, 1), project=False)
    for module in theirs.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    taken = {}
    for name, value in theirs.state_dict().items():
        part, _, kind = name.rpartition(".")
        if part.startswith("stem"):
            taken[{"stem.conv": "layers.0", "stem.norm": "layers.1"}[part] + f".{kind}"] = value
            continue
        _, stage, _, block, *layer = part.split(".")
        place = 4 + sum((2, 1, 1)[: int(stage)]) + int(block)
        convs = ("conv1", "norm1", "", "conv2", "norm2", "", "conv3", "norm3")
        inside = (
            f"shortcut.{int(layer[1] == 'norm')}" if layer[0] == "downsample" else f"branch.{convs.index(layer[0])}"
        )
        taken[f"layers.{place}.{inside}.{kind}"] = value
    ours.load_state_dict(taken)
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = theirs(x).flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours(x), expected, atol=1e-3, rtol=1e-3)  # 1e-5 is added to a deviation here


def test_a_standardised_filter_has_mean_0_and_deviation_1_and_is_timms():
    from timm.layers import StdConv2d

    ours, theirs = StandardisedConv(6, 5, 3, 2), StdConv2d(6, 5, 3, stride=2, eps=1e-10)
    nn.init.normal_(ours.weight, mean=3, std=0.2)
    theirs.load_state_dict(ours.state_dict())
    filters = ours.standardised().flatten(1)
    torch.testing.assert_close(filters.mean(dim=1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(filters.std(dim=1, correction=0), torch.ones(5), atol=1e-3, rtol=0)
    x = torch.randn(2, 6, 8, 12)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-2, rtol=1e-3)
    with torch.no_grad():
        before = ours(x)
        ours.weight.mul_(7).add_(2)  # what a filter's mean and size are makes no difference
        torch.testing.assert_close(ours(x), before, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (2048, 32), (48, 16), (32, 16), (16, 8), (8, 4), (9, 1), (1, 1)]
)
def test_a_norm_has_32_groups_or_two_channels_each(channels, groups):
    assert norm(channels).num_groups == groups


@pytest.mark.parametrize(("before", "stride"), [(32, 1), (16, 1), (32, 2)])
def test_a_bottleneck_starts_as_its_shortcut(before, stride):
    block, x = Bottleneck(before, 8, stride), torch.randn(2, before, 6, 10)
    torch.testing.assert_close(block(x), functional.relu(block.shortcut(x)))
    assert block(x).shape == (2, 32, 6 // stride, 10 // stride)
    assert (len(block.shortcut) == 0) == (before == 32 and stride == 1)
    nn.init.ones_(block.branch[-1].weight)
    assert not torch.allclose(block(x), functional.relu(block.shortcut(x)))


@pytest.mark.parametrize(
    ("blocks", "root", "patch"),
    [
        ((3, 4, 6, 3), "imagenet", 32),
        ((3, 4, 9), "imagenet", 16),
        ((), "imagenet", 16),
        ((1, 1, 1), "small", 4),
        ((1, 1), "small", 6),
        ((), "small", 3),
    ],
)
def test_there_is_one_token_a_patch_on_images_that_are_not_square(blocks, root, patch):
    shape = {"image_size": (patch * 2, patch * 3), "channels": 3, "width": 24, "patch": patch}
    stem = ResNet(**shape, blocks=blocks, root=root, widen=0.25)
    assert stem(torch.randn(2, 3, patch * 2, patch * 3)).shape == (2, 6, 24)
    assert (stem.grid.height, stem.grid.width) == (2, 3)


def test_tokens_stand_in_raster_order():
    stem = SMALL(image_size=(24, 40), channels=1, width=16, patch=8).eval()
    image = torch.zeros(1, 1, 24, 40)
    plain = stem(image)
    image[:, :, 12, 36] = 1.0  # in the second row of tokens, the fifth column
    changed = (stem(image) - plain).abs().sum(-1)[0]
    assert changed.argmax() == 1 * 5 + 4


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"patch": 2}, r"patch=2: a ResNet of model.stem.blocks=\[3, 4, 6, 3\].*every 32 pixels.*use patch=p32"),
        ({"patch": 16}, r"patch=16: .*use patch=p32 or a multiple of 32, or fewer stages"),
        ({"patch": 32, "image_size": (28, 28)}, r"patch=32 does not divide image_size=28x28, and a ResNet.*by 32"),
        ({"patch": 0, "blocks": (), "root": "small"}, r"patch=0 does not divide image_size=64x96"),
        ({"blocks": (3, 0)}, r"model.stem.blocks=\[3, 0\]: expected up to 4 stages of 1 to 100"),
        ({"blocks": (1, 1, 1, 1, 1)}, r"model.stem.blocks=\[1, 1, 1, 1, 1\]: expected up to 4 stages"),
        ({"blocks": (10**9,)}, r"model.stem.blocks=\[1000000000\]: expected"),
        ({"widen": 0.1}, r"model.stem.widen=0.1: 64 channels times that must be 8 at least"),
        ({"widen": float("nan")}, r"model.stem.widen=nan"),
        ({"widen": float("inf")}, r"model.stem.widen=inf"),
        ({"project": False}, r"model.width=16 with patch=32.*use model.width=2048 with patch=p32"),
        ({"project": False, "widen": 2.0, "width": 2048}, r"model.width=2048.*use model.width=4096"),
        ({"project": False, "width": 1024, "blocks": (3, 4, 9)}, r"use model.width=1024 with patch=p16"),
    ],
)
def test_what_does_not_come_out_of_a_resnet_is_refused_with_what_does(values, sentence):
    given = {"image_size": (64, 96), "channels": 3, "width": 16, "patch": 32}
    with pytest.raises(ValueError, match=sentence):
        ResNet(**given | values)


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet, hybrid])
@pytest.mark.parametrize("init", ["authors", "reference"])
def test_it_learns_a_batch_by_heart(make, init):
    torch.manual_seed(0)
    model = make(init=build(check(compose([f"model/init={init}"])[0])["model"]["init"]))
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=3e-3, weight_decay=0.01), model)
    images, labels = torch.randn(16, 2, 6, 10), torch.arange(16) % 7
    losses = []
    for _ in range(60):
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 < 1 < losses[0]


@pytest.mark.parametrize("make", [resnet, hybrid])
def test_filters_decay_and_norms_do_not(make):
    model = make()
    for name, decays in optimizer_of.decays(model).items():
        layer = model.get_submodule(name.rpartition(".")[0]) if "." in name else None
        assert decays == (isinstance(layer, nn.Conv2d | nn.Linear) and name.endswith("weight")), name
    assert sum(optimizer_of.decays(model).values()) > 8


def test_without_blocks_the_stem_is_the_layer_before_the_head():
    model = resnet()
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=1.0), model, layer_decay=0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales["head.output.weight"] == 1.0
    assert scales["stem.layers.0.weight"] == 0.5


def test_a_model_without_blocks_names_what_stands_on_its_way():
    _, seen = resnet().inspect(torch.randn(3, 2, 6, 10))
    assert list(seen) == ["stem", "with_position", "encoded", "pooled", "pre_logits"]
    torch.testing.assert_close(seen["pooled"], seen["stem"].mean(dim=1))
    assert seen["stem"].shape == (3, 15, 128)


def test_what_needs_blocks_is_refused_without_them():
    model = resnet()
    with pytest.raises(ValueError, match=r"model.depth=0: without a block there is no attention"):
        model.inspect(torch.randn(1, 2, 6, 10), attention=True)
    muon = build(check(compose(["optimizer=muon"])[0])["optimizer"])
    with pytest.raises(
        ValueError, match=r"optimizer=muon is for the blocks' matrices, and model.depth=0 has none: use"
    ):
        build_optimizer(muon, model)
    node = check(compose(["system.activation_checkpointing=true"])[0])
    with pytest.raises(ValueError, match=r"system.activation_checkpointing=true: model.depth=0 has no block"):
        parallelize(model, single_process("cpu"), build(node["system"]))


@pytest.mark.parametrize("make", [resnet, hybrid])
@pytest.mark.parametrize("half", [False, True])
def test_the_memory_that_is_counted_is_the_weights_and_at_most_what_a_step_keeps(monkeypatch, make, half):
    model, kept, counted = make(), {}, []
    given = {"patch": 2, "width": 128 if make is resnet else 16, "depth": len(model.blocks), "heads": 1}
    monkeypatch.setattr(footprint, "check_fits", lambda size, *_: counted.append(size))
    shape = {"image_size": (6, 10), "channels": 2, "classes": 7}
    footprint.check_memory(partial(make, **given), **shape, batch=5, half=half)
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert counted[-2] - BLOCK * len(model.blocks) == weights

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", enabled=half):
        model(torch.randn(5, 2, 6, 10))
    peak = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    assert peak / 8 < counted[-1] <= peak


def test_a_resnet_that_no_machine_can_hold_is_refused_with_its_number(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda device: 10**9)
    shape = {"image_size": (224, 224), "channels": 3, "classes": 10}
    given = {"patch": 32, "width": 2048, "depth": 0, "heads": 1, "position": Position, "pool": Gap}
    plain = partial(ViT, **given, stem=partial(ResNet, project=False))
    footprint.check_memory(plain, **shape)
    with pytest.raises(ValueError, match=r"64 images of 49 tokens at once: a training step keeps at least 2.5 GB"):
        footprint.check_memory(plain, **shape, batch=64)
    wide = partial(ViT, **given | {"width": 131072}, stem=partial(ResNet, project=False, widen=64.0))
    with pytest.raises(ValueError, match=r"weights take .* use a smaller model.stem"):
        footprint.check_memory(wide, **shape)


@pytest.mark.parametrize("attention", [{}, {"attention": Axial, "pool": Gap}])
@pytest.mark.parametrize("depth", [1, 2, 3, 6, 7])
def test_the_flops_of_a_sweep_are_those_of_the_model_at_any_depth(attention, depth):
    make = partial(hybrid, width=16, depth=depth, **attention)
    shape = {"image_size": (6, 10), "channels": 2, "classes": 7}
    assert flops(make, shape) == count.passes(make(), (2, 6, 10))


def test_the_flops_of_a_sweep_are_those_of_a_model_without_blocks():
    shape = {"image_size": (6, 10), "channels": 2, "classes": 7}
    assert flops(partial(resnet, depth=0), shape) == count.passes(resnet(), (2, 6, 10))


@pytest.mark.parametrize("words", [["model=resnet_small"], ["model=micro", "model/stem=resnet_small"]])
def test_a_training_is_made_ready_from_words_alone(words):
    node = check(compose([*words, "patch=p4", "tracking=off", "fit.layer_decay=0.9"])[0])
    setup = prepare(**assemble(node), dist=single_process())
    assert 100_000 < count.parameters(setup.model) < 200_000
    assert setup.flops > 0
