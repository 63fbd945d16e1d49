"""The whole Vision Transformer, against timm's, the paper's counts, and its own promises."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

from vitlab.config.build import build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.model import count
from vitlab.model.attention import Attention, Axial, Products
from vitlab.model.block import Residual
from vitlab.model.dropout import Dropout, drop_path, dropout
from vitlab.model.head import Linear, TanhMlp
from vitlab.model.init import Init
from vitlab.model.mlp import Mlp, SwiGlu
from vitlab.model.pool import Cls, Gap, Map
from vitlab.model.position import Learned1d, Learned2d, Position, Relative, Rope, SinCos2d
from vitlab.model.stem import Convolutions, Patches
from vitlab.model.vit import ViT
from vitlab.training import pretrained

POSITIONS = [
    Position,
    Learned1d,
    partial(Learned1d, at="every_block"),
    partial(Learned1d, at="every_block_shared"),
    Learned2d,
    partial(Learned2d, at="every_block"),
    SinCos2d,
    partial(SinCos2d, at="every_block_shared"),
    Relative,
    partial(Relative, at="every_block_shared"),
    Rope,
]


def random_init(model):
    """Every parameter random, so that nothing is equal by being zero."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def vit(**parts):
    """A small model on a lattice that is not square."""
    given = {"image_size": (6, 10), "channels": 2, "classes": 7, "patch": 2, "width": 16, "depth": 3, "heads": 2}
    return ViT(**(given | {"init": random_init} | parts)).eval()


def images(n=3):
    return torch.randn(n, 2, 6, 10)


@pytest.mark.parametrize(
    ("patch", "width", "depth", "heads", "parameters"),
    [
        (16, 768, 12, 12, 86_567_656),  # B/16, as torchvision and timm publish it
        (32, 768, 12, 12, 88_224_232),
        (16, 1024, 24, 16, 304_326_632),
        (32, 1024, 24, 16, 306_535_400),
        (14, 1280, 32, 16, 632_045_800),
    ],
)
def test_sizes_have_the_published_parameter_counts(patch, width, depth, heads, parameters):
    with torch.device("meta"):
        model = ViT(image_size=224, channels=3, classes=1000, patch=patch, width=width, depth=depth, heads=heads)
    assert count.parameters(model) == parameters


def test_flops_of_b16_are_those_of_the_literature():
    with torch.device("meta"):
        model = ViT(image_size=224, channels=3, classes=1000, patch=16, width=768, depth=12, heads=12)
    assert count.flops(model, (3, 224, 224)) == pytest.approx(2 * 17.56e9, rel=0.001)  # 17.56 billion multiply-adds


@pytest.mark.parametrize("kernel", ["explicit", "fused"])
@pytest.mark.parametrize(
    "parts", [{}, {"stem": Convolutions, "pool": Map, "position": Relative}, {"mlp": SwiGlu, "head": TanhMlp}]
)
def test_flops_are_those_that_torchs_counter_finds(parts, kernel):
    from torch.utils.flop_counter import FlopCounterMode

    model = vit(attention=partial(Attention, kernel=kernel), **parts)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 2, 6, 10))
    assert count.flops(model, (2, 6, 10)) == counter.get_total_flops()


@pytest.mark.parametrize("pool", ["cls", "gap"])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_logits_equal_those_of_timm_with_the_same_weights(pool, layer_scale):
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(
        img_size=(8, 12),
        patch_size=4,
        in_chans=3,
        num_classes=5,
        embed_dim=24,
        depth=3,
        num_heads=3,
        class_token=pool == "cls",
        global_pool="token" if pool == "cls" else "avg",
        fc_norm=False,
        init_values=layer_scale,
    ).eval()
    random_init(theirs)
    ours = ViT(
        image_size=(8, 12),
        channels=3,
        classes=5,
        patch=4,
        width=24,
        depth=3,
        heads=3,
        pool=Cls if pool == "cls" else Gap,
        layer_scale=layer_scale,
    ).eval()
    source = theirs.state_dict()
    taken = {
        "stem.projection.weight": source["patch_embed.proj.weight"].flatten(1),
        "stem.projection.bias": source["patch_embed.proj.bias"],
        "positions.0.table": source["pos_embed"][0],
        "norm.weight": source["norm.weight"],
        "norm.bias": source["norm.bias"],
        "head.output.weight": source["head.weight"],
        "head.output.bias": source["head.bias"],
    }
    if pool == "cls":
        taken["prefix"] = source["cls_token"][0]
    names = {
        "attention.norm": "norm1",
        "mlp.norm": "norm2",
        "attention.branch.qkv": "attn.qkv",
        "attention.branch.output": "attn.proj",
        "mlp.branch.expand": "mlp.fc1",
        "mlp.branch.contract": "mlp.fc2",
    }
    for layer in range(3):
        for mine, its in names.items():
            for kind in ("weight", "bias"):
                taken[f"blocks.{layer}.{mine}.{kind}"] = source[f"blocks.{layer}.{its}.{kind}"]
        if layer_scale:
            taken[f"blocks.{layer}.attention.scale"] = source[f"blocks.{layer}.ls1.gamma"]
            taken[f"blocks.{layer}.mlp.scale"] = source[f"blocks.{layer}.ls2.gamma"]
    ours.load_state_dict(taken)
    x = torch.randn(4, 3, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("pool", [Cls, Gap, Map])
def test_every_part_works_with_every_other_on_a_lattice_that_is_not_square(position, pool):
    for stem, mlp, head in ((Patches, Mlp, Linear), (Convolutions, SwiGlu, TanhMlp)):
        model = vit(position=position, pool=pool, stem=stem, mlp=mlp, head=head, registers=2, layer_scale=0.1)
        logits = model(images())
        assert logits.shape == (3, 7)
        logits.sum().backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None]
        assert idle == []


def test_without_position_permuting_the_patches_permutes_the_outputs():
    model = vit(position=Position)
    order = torch.randperm(15)
    x = images()
    patches = rearrange(x, "b c (h p) (w q) -> b (h w) c p q", p=2, q=2)[:, order]
    shuffled = rearrange(patches, "b (h w) c p q -> b c (h p) (w q)", h=3)
    one, two = (model.inspect(i) for i in (x, shuffled))
    torch.testing.assert_close(one[0], two[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one[1]["encoded"][:, 1:][:, order], two[1]["encoded"][:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", POSITIONS[1:])
def test_with_position_permuting_the_patches_changes_the_logits(position):
    model = vit(position=position)
    x = images()
    assert not torch.allclose(model(x), model(x.flip(3)), atol=1e-3)


@pytest.mark.parametrize(
    ("position", "at", "tables"),
    [
        (Learned1d, "stem", 1),
        (Learned1d, "every_block", 3),
        (Learned1d, "every_block_shared", 1),
        (Relative, "every_block", 3),
    ],
)
def test_tables_are_one_a_block_or_one_for_all(position, at, tables):
    model = vit(position=partial(position, at=at))
    assert len(model.positions) == tables


def test_shared_positions_enter_every_block_and_stem_positions_only_the_first():
    for at, entries in (("stem", 1), ("every_block_shared", 3)):
        model = vit(position=partial(Learned1d, at=at))
        calls = []
        model.positions[0].register_full_backward_hook(lambda *_: None)
        plain = type(model.positions[0]).add
        model.positions[0].add = lambda x, m=model, c=calls, f=plain: c.append(1) or f(m.positions[0], x)
        model(images())
        assert len(calls) == entries


def test_intermediates_are_named_and_shaped():
    model = vit(registers=2, head=TanhMlp)
    logits, seen = model.inspect(images(), attention=True)
    shapes = {name: tuple(x.shape) for name, x in seen.items()}
    tokens = (3, 18, 16)
    assert shapes == {
        "stem": (3, 15, 16),
        "with_position": tokens,
        **{f"block_{i}": tokens for i in range(3)},
        "encoded": tokens,
        "pooled": (3, 16),
        "pre_logits": (3, 16),
        **{f"attention_{i}": (3, 2, 18, 18) for i in range(3)},
    }
    torch.testing.assert_close(logits, model(images()), atol=10, rtol=10)
    torch.testing.assert_close(model.head.output(seen["pre_logits"]), logits)
    torch.testing.assert_close(seen["attention_1"].sum(-1), torch.ones(3, 2, 18))


def test_asking_for_intermediates_leaves_the_logits_as_they_are():
    model, x = vit(), images()
    torch.testing.assert_close(model(x), model.inspect(x, attention=True)[0])


def test_the_average_pool_leaves_prefix_tokens_out():
    model = vit(pool=Gap, registers=3)
    _, seen = model.inspect(images())
    torch.testing.assert_close(seen["pooled"], seen["encoded"][:, 3:].mean(1))


def test_the_class_token_is_what_the_class_pool_reads():
    model = vit(pool=Cls, registers=3)
    _, seen = model.inspect(images())
    torch.testing.assert_close(seen["pooled"], seen["encoded"][:, 0])


def test_reference_has_no_final_norm():
    model = vit(final_norm=False)
    _, seen = model.inspect(images())
    torch.testing.assert_close(seen["encoded"], seen["block_2"])


def test_stochastic_depth_grows_from_zero_to_its_rate():
    model = vit(depth=5, drop_path=0.4)
    rates = [block.attention.drop_rate for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    x = torch.ones(20_000, 2, 3)
    dropped = drop_path(x, 0.25, training=True)
    per_image = dropped.flatten(1)
    assert ((per_image == 0).all(1) | (per_image == 1 / 0.75).all(1)).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert drop_path(x, 0.25, training=False) is x


def test_a_dropped_branch_leaves_the_image_as_it_is():
    residual = Residual(Mlp(width=8, dropout=0.0), width=8, layer_scale=None, drop_rate=0.5, epsilon=1e-6).train()
    x = torch.randn(64, 3, 8)
    same = (residual(x) == x).flatten(1).all(1)
    assert 10 < same.sum() < 54


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = vit(dropout=0.5, attention=partial(Attention, dropout=0.5))
    x = images()
    torch.testing.assert_close(model(x), model(x))
    model.train()
    assert not torch.allclose(model(x), model(x))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_its_share_and_scales_the_rest(rate, dtype):
    x = torch.ones(301, 333, dtype=dtype)
    out = dropout(x, rate)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).to(dtype).item()}
    assert (out == 0).double().mean().item() == pytest.approx(rate, abs=0.006)
    for neighbour in (1, 2, 3, 4):  # draws that share 64 bits are independent of each other
        both = ((out.flatten()[:-neighbour] == 0) & (out.flatten()[neighbour:] == 0)).double().mean().item()
        assert both == pytest.approx(rate**2, abs=0.01)
    assert dropout(x, rate, training=False) is x


def test_dropout_sites_are_the_papers():
    model = vit(dropout=0.1)
    rates = [name for name, m in model.named_modules() if isinstance(m, Dropout) and m.rate == 0.1]
    assert rates == [
        *(f"blocks.{i}.{site}" for i in range(3) for site in ("attention.branch.output_dropout", "mlp.branch.dropout")),
        "dropout",
    ]


def test_zero_init_and_bias_init_of_the_head():
    model = vit(init=None, head=partial(Linear, zero_init=True, bias_init=-6.9))
    torch.testing.assert_close(model(images()), torch.full((3, 7), -6.9))


def test_authors_initialisation_has_its_spreads():
    model = ViT(image_size=32, channels=3, classes=10, patch=4, width=256, depth=2, heads=4, registers=1)
    block = model.blocks[0]
    assert model.positions[0].table.std().item() == pytest.approx(0.02, rel=0.05)
    assert (model.prefix == 0).all()
    bound = (6 / 512) ** 0.5  # xavier of width to width, for each of q, k and v alone
    for part in block.attention.branch.qkv.weight.chunk(3):
        assert part.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert block.attention.branch.qkv.bias.abs().max() == 0
    assert block.mlp.branch.expand.bias.std().item() == pytest.approx(1e-6, rel=0.2)
    assert model.stem.projection.weight.std().item() == pytest.approx((1 / 48) ** 0.5, rel=0.05)


def test_reference_initialisation_has_its_spreads():
    init = Init(stem="torch", position_std=1.0, token_std=1.0, mlp_bias_std=0.0, joint_qkv=True)
    model = ViT(image_size=32, channels=3, classes=10, patch=4, width=256, depth=1, heads=4, init=init)
    assert model.positions[0].table.std().item() == pytest.approx(1, rel=0.05)
    assert model.prefix.std().item() == pytest.approx(1, rel=0.2)
    assert model.blocks[0].attention.branch.qkv.weight.abs().max().item() == pytest.approx((6 / 1024) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"patch": 5}, r"patch=5 does not divide image_size=6x10: use one of 1, 2"),
        ({"heads": 3}, r"heads=3 does not divide width=16: use one of 1, 2, 4, 8, 16"),
        ({"heads": 0}, r"model.heads=0: must be at least 1"),
        ({"width": 18, "heads": 1, "position": SinCos2d}, r"width=18 is not a multiple of 4.*use 20"),
        ({"width": 15, "heads": 3, "position": Learned2d}, r"width=15 is odd.*use 16"),
        ({"width": 12, "heads": 2, "position": Rope}, r"RoPE.*width=12 over 2 heads gives 6"),
        ({"width": 6, "heads": 2, "patch": 2, "stem": Convolutions, "image_size": 16, "depth": 0}, r"model.depth=0"),
        ({"depth": -1}, r"model.depth=-1: must be at least 0"),
        (
            {"depth": 0},
            r"model.depth=0: no block shows the image to class token or registers \(1 here\): use model/pool=gap",
        ),
        ({"depth": 0, "pool": Gap, "registers": 2}, r"model.depth=0: no block shows the image to.*\(2 here\)"),
        ({"depth": 0, "pool": Gap, "position": Rope}, r"no block that Rope positions could enter: use model/position"),
        (
            {"attention": Axial},
            r"model/attention=axial.*\(1 here\) stand in none: use model/pool=gap or model/pool=map",
        ),
        ({"attention": Axial, "pool": Gap, "registers": 3}, r"axial.*\(3 here\).*model.registers=0"),
        ({"attention": Axial, "pool": Gap, "position": Relative}, r"axial.*bias of Relative.*use model/position="),
        (
            {"width": 6, "heads": 2, "patch": 8, "stem": Convolutions, "image_size": 16},
            r"width=6 cannot be halved 2 times",
        ),
        ({"dropout": 1.0}, r"model.dropout=1.0: a probability"),
        ({"drop_path": -0.1}, r"model.drop_path=-0.1"),
        ({"registers": -1}, r"model.registers=-1"),
        ({"mlp": partial(Mlp, ratio=0.01)}, r"mlp ratio=0.01 leaves no hidden channel"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_a_way_out(parts, sentence):
    with pytest.raises(ValueError, match=sentence):
        vit(**parts)


@pytest.mark.slow
def test_the_model_compiles_without_a_break_whatever_its_stem_and_its_attention():
    code = """
from functools import partial
import torch
from vitlab.model.attention import Axial
from vitlab.model.pool import Gap
from vitlab.model.position import Position, Rope
from vitlab.model.resnet import ResNet
from vitlab.model.vit import ViT
images = torch.randn(2, 1, 8, 12)
small = partial(ResNet, blocks=(1, 1), widen=0.25, root="small")
shape = {"image_size": (8, 12), "channels": 1, "classes": 3, "patch": 4, "heads": 2}
for model in (
    ViT(**shape, width=8, depth=2, position=Rope, registers=1),
    ViT(**shape, width=8, depth=2, position=Rope, attention=Axial, stem=small, pool=Gap),
    ViT(**shape | {"patch": 2}, width=128, depth=0, position=Position, stem=partial(small, project=False), pool=Gap),
):
    model = model.eval()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))
"""
    subprocess.run([sys.executable, "-c", code], check=True)  # away from the run-time checks, which break the graph


@pytest.mark.slow
def test_one_compilation_serves_all_models_of_a_shape_and_there_may_be_many_shapes():
    code = """
from types import SimpleNamespace
import torch
from torch._dynamo.utils import counters
from vitlab.model.vit import ViT
from vitlab.system.distributed import single_process
from vitlab.system.parallelize import parallelize
images, stats = torch.randn(2, 1, 8, 8), counters["stats"]
def train(width):
    model = ViT(image_size=8, channels=1, classes=3, patch=4, width=width, depth=1, heads=2)
    plain = ViT(image_size=8, channels=1, classes=3, patch=4, width=width, depth=1, heads=2)
    plain.load_state_dict(model.state_dict())
    parallelize(model, single_process(), SimpleNamespace(activation_checkpointing=False, compile=True, parallel="auto"))
    model.compile(backend="eager")
    for each in (model, plain):
        each(images).square().sum().backward()
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
train(8)
train(8)
assert stats["unique_graphs"] == 1, stats
train(16)
assert stats["unique_graphs"] == 2, stats
assert torch._dynamo.config.recompile_limit > 100
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_logits_on_a_gpu_equal_those_on_the_cpu(accelerator):
    model, x = vit(), images()
    expected = model(x)
    torch.testing.assert_close(model.to(accelerator)(x.to(accelerator)).cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "words",
    [
        "patch=p2",
        "patch=p2 model/attention=axial model/pool=gap",
        "model=resnet_small patch=p4",
        "model/stem=resnet_small patch=p4",
        "model/position=relative",
        "model/pool=map",
        "patch=p2 model/objective=masked_patch",
    ],
)
def test_flops_of_a_training_step_are_those_that_torchs_counter_finds(words):
    node = check(compose(words.split())[0])
    model = build(node["model"])(image_size=(8, 8), channels=1, classes=10).eval()
    with FlopCounterMode(display=False) as counter:
        out = model(torch.zeros(1, 1, 8, 8))
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert sum(count.passes(model, (1, 8, 8))) == counter.get_total_flops()


def test_frozen_weights_cost_no_backward_pass_but_the_heads():
    model = ViT(image_size=8, channels=1, classes=10, patch=2, width=16, depth=2, heads=2)
    pretrained.freeze(model)
    assert count.passes(model, (1, 8, 8))[1] == 2 * 16 * 10


def test_products_whose_backward_pass_is_written_out_are_counted():
    q = torch.randn(3, 1, 2, 5, 4, requires_grad=True)
    with count.Counter() as counter:
        Products.apply(q)
    each = 2 * 2 * 5 * 5 * 4  # one product of two heads
    assert (counter.forward, counter.backward) == (2 * each, 4 * each)
