"""What decays, what is clipped, what follows, and what a loss is."""

import copy
import math
from functools import partial

import pytest
import torch

from vitlab.config.build import build
from vitlab.config.check import check
from vitlab.config.compose import compose
from vitlab.config.groups import menu
from vitlab.model.pool import Map
from vitlab.model.position import Learned2d, Relative
from vitlab.model.stem import Convolutions
from vitlab.model.vit import ViT
from vitlab.training import optimizer as optimizer_of
from vitlab.training.ema import Ema
from vitlab.training.loss import CrossEntropy, SigmoidCrossEntropy
from vitlab.training.muon import Muon, orthogonal
from vitlab.training.optimizer import build_optimizer, clip, evaluating

pytestmark = pytest.mark.usefixtures("no_curves")


def vit(depth=1, **parts):
    return ViT(image_size=8, channels=1, classes=3, patch=4, width=8, depth=depth, heads=2, registers=1, **parts)


def make(option, **values):
    """The optimizer of a YAML, without its parameters."""
    node, _ = compose([f"optimizer={option}"])
    return partial(build(check(node)["optimizer"]), **values)


def learn(model, optimizer, steps, start=0):
    """The losses of a few updates on numbers that depend on the update alone."""
    losses = []
    for update in range(start, steps):
        draw = torch.Generator().manual_seed(update)
        images, labels = torch.randn(16, 1, 8, 8, generator=draw), torch.randint(0, 3, (16,), generator=draw)
        loss = torch.nn.functional.cross_entropy(model(images + labels.view(-1, 1, 1, 1)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "parts", [{}, {"pool": Map, "position": Learned2d}, {"stem": Convolutions, "position": Relative}]
)
def test_matrices_decay_and_nothing_else_does(parts):
    model = vit(layer_scale=0.1, **parts)
    for name, decays in optimizer_of.decays(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        matrix = name.endswith("weight") and isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        assert decays == matrix, name


def test_every_parameter_is_in_one_group_and_the_second_has_no_decay():
    model = vit()
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.5), model)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize("make", [partial(torch.optim.AdamW, lr=0.1), partial(torch.optim.SGD, lr=0.1, momentum=0.9)])
def test_the_lean_step_is_torchs_step(make):
    ours, theirs = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    one, two = (
        build_optimizer(partial(make, weight_decay=0.0), ours),
        make(theirs.parameters(), weight_decay=0.0, fused=True),
    )
    for _ in range(3):
        x = torch.randn(5, 4)
        for model, optimizer in ((ours, one), (theirs, two)):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), atol=0, rtol=0)


def test_gradients_are_clipped_to_a_norm_over_all_and_the_norm_before_is_told():
    model = torch.nn.Linear(3, 3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert clip(model.parameters(), 2.0).item() == pytest.approx(12**0.5)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert clipped == pytest.approx(2.0, rel=1e-4)
    assert clip(model.parameters(), None).item() == pytest.approx(2.0, rel=1e-4)
    assert clip(model.parameters(), 5.0).item() == pytest.approx(2.0, rel=1e-4)


def test_a_bad_learning_rate_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.lr=-1.0: must be from 0 to 1e.30"):
        build_optimizer(partial(torch.optim.AdamW, lr=-1.0), vit())


def test_the_average_follows_the_weights_by_its_decay():
    model = torch.nn.Linear(1, 1)
    average = Ema(model, 0.5)
    before = model.weight.item()
    with torch.no_grad():
        model.weight.fill_(10.0)
    average.set(1000)
    average.update()
    with average.in_place():
        assert model.weight.item() == pytest.approx((before + 10) / 2)
    assert model.weight.item() == 10.0


def test_without_a_decay_there_is_no_average():
    model = torch.nn.Linear(1, 1)
    average = Ema(model, 0.0)
    average.set(3)
    average.update()
    before = model.weight.item()
    with average.in_place():
        assert model.weight.item() == before
    assert average.average == []


def test_hard_and_soft_labels_have_the_same_loss_and_are_smoothed_once():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    soft = torch.nn.functional.one_hot(labels, 4).float()
    loss = CrossEntropy(label_smoothing=0.2, class_weights=None)
    smoothed = 0.8 * soft + 0.2 / 4
    expected = -(smoothed * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, soft), expected)


def test_smoothing_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing=1\.0"):
        CrossEntropy(label_smoothing=1.0, class_weights=None)


@pytest.mark.slow
@pytest.mark.parametrize("option", menu()["optimizer"])
def test_every_optimizer_learns_and_goes_on_from_its_state_to_the_bit(option):
    torch.manual_seed(0)
    whole = vit(depth=2)
    optimizer = build_optimizer(make(option, lr=3e-3 if option != "sgd" else 0.1), whole, layer_decay=0.8)
    losses = learn(whole, optimizer, 30)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(whole.state_dict())
    losses += learn(whole, optimizer, 60, start=30)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    again = vit(depth=2)
    again.load_state_dict(weights)
    resumed = build_optimizer(make(option, lr=1.0), again, layer_decay=0.8)
    resumed.load_state_dict(state)
    assert learn(again, resumed, 60, start=30) == losses[30:]
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_layer_learns_at_a_share_of_the_rate_of_the_one_after_it():
    model = vit(depth=3)
    optimizer = build_optimizer(make("adamw", lr=1.0), model, layer_decay=0.5, scale=2.0)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {group["lr"] for group in optimizer.param_groups} == {2.0}
    assert scales["head.output.weight"] == scales["norm.bias"] == 1.0
    assert scales["blocks.2.mlp.branch.expand.weight"] == 0.5
    assert scales["blocks.0.attention.branch.qkv.bias"] == 0.125
    assert scales["stem.projection.weight"] == scales["prefix"] == scales["positions.0.table"] == 0.0625


def test_muon_turns_the_matrices_of_the_blocks_and_adamw_moves_the_rest():
    model = vit(depth=2)
    optimizer = build_optimizer(make("muon"), model)
    names = {id(p): name for name, p in model.named_parameters()}
    held = {names[id(p)]: group["matrices"] for group in optimizer.param_groups for p in group["params"]}
    for name, count in held.items():
        inside = name.startswith("blocks.") and name.endswith("weight") and "norm" not in name
        assert count == (3 if "qkv" in name else 1) * inside, name
    ours, theirs = vit(), vit()
    theirs.load_state_dict(ours.state_dict())
    values = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.5}
    one = build_optimizer(make("muon", **values), ours)
    rest = [p for n, p in theirs.named_parameters() if not held[n]]
    decay = [p for n, p in theirs.named_parameters() if not held[n] and optimizer_of.decays(theirs)[n]]
    plain = [p for p in rest if not any(p is d for d in decay)]
    other = torch.optim.AdamW([{"params": decay}, {"params": plain, "weight_decay": 0.0}], **values)
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for model, optimizer in ((ours, one), (theirs, other)):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    found = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        if not held[name]:
            torch.testing.assert_close(found[name], p)


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (10, 6)])
def test_muons_step_is_torchs_up_to_its_bf16(shape):
    ours, theirs = torch.nn.Parameter(torch.randn(shape)), torch.nn.Parameter(torch.empty(shape))
    theirs.data.copy_(ours.data)
    common = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
    groups = [{"params": [ours], "matrices": 1}, {"params": [torch.nn.Parameter(torch.zeros(1))], "matrices": 0}]
    one = Muon(groups, iterations=5, betas=(0.9, 0.999), eps=1e-8, **common)
    other = torch.optim.Muon([theirs], nesterov=True, ns_steps=5, adjust_lr_fn="match_rms_adamw", **common)
    for update in range(4):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(update))
        for parameter, optimizer in ((ours, one), (theirs, other)):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


def test_queries_keys_and_values_are_made_orthogonal_apart():
    stack = torch.randn(3, 8, 8) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1)
    for matrix in orthogonal(stack, 12):
        values = torch.linalg.svdvals(matrix)
        assert values.min() > 0.6
        assert values.max() < 1.3


@pytest.mark.parametrize("option", ["muon", "adamw", "lion", "sgd"])
def test_what_an_optimizer_refuses_is_said_as_a_sentence(option):
    with pytest.raises(ValueError, match=r"optimizer[:.]"):
        build_optimizer(make(option, lr=-1.0), vit())


def test_schedule_free_answers_from_the_average_and_trains_on():
    model = vit()
    optimizer = build_optimizer(make("schedulefree"), model)
    learn(model, optimizer, 5)
    before = [p.detach().clone() for p in model.parameters()]
    with evaluating(optimizer):
        assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    torch.testing.assert_close(list(model.parameters()), before)
    learn(model, optimizer, 7, start=5)


def test_sigmoid_cross_entropy_asks_each_class_for_itself():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    soft = torch.nn.functional.one_hot(labels, 4).float()
    loss = SigmoidCrossEntropy(label_smoothing=0.0, class_weights=None, head_bias=None)
    p = logits.sigmoid()
    expected = -(soft * p.log() + (1 - soft) * (1 - p).log()).sum(dim=1).mean()
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, soft), expected)


def test_a_loss_sets_the_heads_bias_it_wants():
    for bias, expected in ((None, -math.log(1000)), (-10.0, -10.0)):
        head = torch.nn.Linear(4, 1000)
        SigmoidCrossEntropy(label_smoothing=0.0, class_weights=None, head_bias=bias).start(head)
        torch.testing.assert_close(head.bias, torch.full((1000,), expected))
    head = torch.nn.Linear(4, 1000)
    before = head.bias.clone()
    CrossEntropy(label_smoothing=0.0, class_weights=None).start(head)
    assert torch.equal(head.bias, before)
