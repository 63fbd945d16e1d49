"""What decays, what is clipped, what follows, and what a loss is."""

from functools import partial

import pytest
import torch

from vitlab import optim
from vitlab.ema import Ema
from vitlab.loss import CrossEntropy
from vitlab.model.pool import Map
from vitlab.model.position import Learned2d, Relative
from vitlab.model.stem import Convolutions
from vitlab.model.vit import ViT


def vit(**parts):
    return ViT(image_size=8, channels=1, classes=3, patch=4, width=8, depth=1, heads=2, registers=1, **parts)


@pytest.mark.parametrize(
    "parts", [{}, {"pool": Map, "position": Learned2d}, {"stem": Convolutions, "position": Relative}]
)
def test_matrices_decay_and_nothing_else_does(parts):
    model = vit(layer_scale=0.1, **parts)
    for name, decays in optim.decays(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        matrix = name.endswith("weight") and isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        assert decays == matrix, name


def test_every_parameter_is_in_one_group_and_the_second_has_no_decay():
    model = vit()
    optimizer = optim.build(partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.5), model)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize("make", [partial(torch.optim.AdamW, lr=0.1), partial(torch.optim.SGD, lr=0.1, momentum=0.9)])
def test_the_lean_step_is_torchs_step(make):
    ours, theirs = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    theirs.load_state_dict(ours.state_dict())
    one, two = (
        optim.build(partial(make, weight_decay=0.0), ours),
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
    assert optim.clip(model, 2.0).item() == pytest.approx(12**0.5)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert clipped == pytest.approx(2.0, rel=1e-4)
    assert optim.clip(model, None).item() == pytest.approx(2.0, rel=1e-4)
    assert optim.clip(model, 5.0).item() == pytest.approx(2.0, rel=1e-4)


def test_a_bad_learning_rate_is_refused():
    with pytest.raises(ValueError, match="optimizer: Invalid learning rate"):
        optim.build(partial(torch.optim.AdamW, lr=-1.0), vit())


def test_the_average_follows_the_weights_by_its_decay():
    model = torch.nn.Linear(1, 1)
    average = Ema(model, 0.5)
    before = model.weight.item()
    with torch.no_grad():
        model.weight.fill_(10.0)
    average.update(1000)
    with average.in_place():
        assert model.weight.item() == pytest.approx((before + 10) / 2)
    assert model.weight.item() == 10.0


def test_without_a_decay_there_is_no_average():
    model = torch.nn.Linear(1, 1)
    average = Ema(model, 0.0)
    average.update(3)
    before = model.weight.item()
    with average.in_place():
        assert model.weight.item() == before
    assert average.average == []


def test_hard_and_soft_labels_have_the_same_loss_and_are_smoothed_once():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    soft = torch.nn.functional.one_hot(labels, 4).float()
    loss = CrossEntropy(label_smoothing=0.2)
    smoothed = 0.8 * soft + 0.2 / 4
    expected = -(smoothed * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, soft), expected)


def test_smoothing_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"label_smoothing=1\.0"):
        CrossEntropy(label_smoothing=1.0)
