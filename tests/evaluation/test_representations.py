"""Representations, filters and positions as numbers, on cases with a known answer."""

import math
from functools import partial

import pytest
import torch

from vitlab.evaluation import representations as of
from vitlab.model.grid import Grid
from vitlab.model.position import Learned1d, Learned2d, Position, Rope, SinCos2d
from vitlab.model.resnet import ResNet
from vitlab.model.stem import Convolutions, Patches

GRID = Grid(3, 5, prefix=2)


def orthogonal(n):
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]


def test_the_cka_of_a_rotation_and_of_a_scale_is_1():
    x = torch.randn(50, 6, dtype=torch.float64)
    found = of.linear_cka([x, x @ orthogonal(6), 3 * x + 7])
    torch.testing.assert_close(found, torch.ones(3, 3, dtype=torch.float64))


def test_the_cka_of_independent_representations_is_about_0_at_few_examples_too():
    found = of.linear_cka([torch.randn(300, 64), torch.randn(300, 64)])
    assert abs(found[0, 1]) < 0.05


def test_the_cka_is_that_of_the_definition():
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 7, dtype=torch.float64)

    def hsic(k, m, n=9):  # Song et al. 2012, equation 5
        k, m = (g - g.diagonal().diag() for g in (k, m))
        first = (k @ m).trace() + k.sum() * m.sum() / ((n - 1) * (n - 2))
        return (first - 2 / (n - 2) * (k @ m).sum()) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    assert float(of.linear_cka([x, y])[0, 1]) == pytest.approx(float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()))


def test_cka_says_how_many_examples_it_needs():
    with pytest.raises(ValueError, match="3 examples: CKA needs 4"):
        of.linear_cka([torch.randn(3, 2)] * 2)


def test_representations_that_are_the_same_for_all_examples_have_no_cka():
    found = of.linear_cka([torch.ones(5, 2), torch.randn(5, 2)])
    assert found[0].isnan().all()
    assert found[1, 1] == pytest.approx(1)


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("n", [4, 60], ids=["fewer examples than channels", "more"])
def test_the_effective_rank_is_the_number_of_directions_that_count_alike(rank, n):
    used = min(rank, n - 1)
    columns = torch.cat((torch.ones(n, 1), torch.randn(n, used)), dim=1).double()
    spread = torch.linalg.qr(columns)[0][:, 1:]  # orthonormal, and of mean 0
    assert of.effective_rank(5 + spread @ orthogonal(8)[:used]) == pytest.approx(used)


def test_the_effective_rank_of_what_never_changes_is_0():
    assert of.effective_rank(torch.ones(7, 4)) == 0


def test_the_principal_components_of_filters_are_found_again_with_their_share():
    basis = orthogonal(12)[:2].view(2, 3, 2, 2)
    basis = basis * torch.tensor([1 if b.flatten()[b.abs().argmax()] > 0 else -1 for b in basis]).view(2, 1, 1, 1)
    weights = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]], dtype=torch.float64)
    filters = torch.einsum("dk,kcpq->dcpq", weights, basis) + 0.5
    components, share = of.principal_components(filters, 28)
    torch.testing.assert_close(components[:2], basis.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(share[:2], torch.tensor([0.9, 0.1]))
    assert components.shape[1:] == (3, 2, 2)
    assert len(of.principal_components(filters, 1)[0]) == 1


@pytest.mark.parametrize(
    ("stem", "shape"),
    [
        (Patches, (16, 3, 4, 4)),
        (Convolutions, (8, 3, 3, 3)),
        (partial(ResNet, blocks=(1, 1, 1), root="small", widen=0.25), (16, 3, 3, 3)),
    ],
)
def test_every_stem_has_filters_over_the_pixels(stem, shape):
    made = stem(image_size=(8, 12), channels=3, width=16, patch=4)
    filters = of.stem_filters(made, 3)
    assert filters.shape == shape
    if stem is Patches:
        pixels = torch.randn(1, 3, 8, 12)
        of_first = (pixels[0, :, :4, :4] * filters[5]).sum() + made.projection.bias[5]
        torch.testing.assert_close(made(pixels)[0, 0, 5], of_first)
    assert of.stem_filters(torch.nn.Identity(), 3) is None


def test_the_cosine_of_vectors_is_1_with_itself_and_0_at_a_right_angle():
    vectors = torch.tensor([[2.0, 0], [0, 3], [-1, 0], [1, 1]])
    found = of.cosine_similarity(vectors)
    expected = torch.tensor([1, 0, -1, math.sqrt(0.5)])
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(of.cosine_similarity(vectors, torch.tensor([2, 0])), found[[2, 0]])
    assert of.cosine_similarity(torch.zeros(2, 3)).isnan().all()


@pytest.mark.parametrize("kind", [Learned1d, Learned2d, SinCos2d])
def test_what_a_position_adds_is_its_table(kind):
    position = kind(width=8, head_width=4, grid=GRID)
    for table in position.parameters():
        torch.nn.init.normal_(table)
    found = of.added_vectors(position, 8)
    tokens = torch.randn(1, GRID.tokens, 8)
    torch.testing.assert_close(found, (position.add(tokens) - tokens)[0, 2:])
    assert found.shape == (15, 8)
    if kind is SinCos2d:  # the same offset has the same cosine wherever it is
        cosine = of.cosine_similarity(found).view(3, 5, 3, 5)
        torch.testing.assert_close(cosine[0, 0, 1, 2], cosine[1, 2, 2, 4])


def test_rope_multiplies_the_logits_by_the_mean_cosine_of_its_angles():
    position = Rope(width=16, head_width=8, grid=GRID, base=100.0)
    found = of.rotation_similarity(position, 8).view(3, 5, 3, 5)
    frequencies = [1.0, 0.1]  # two of a head's four pairs turn with the row, two with the column
    down, right = (sum(math.cos(n * f) for f in frequencies) for n in (2, 3))
    assert float(found[0, 0, 2, 3]) == pytest.approx((down + right) / 4, abs=1e-6)
    torch.testing.assert_close(found[1, 2, 1, 2], torch.tensor(1.0))
    one = of.rotation_similarity(position, 8, torch.tensor([7]))
    torch.testing.assert_close(one[0], found[1, 2].flatten())


def test_a_position_that_turns_nothing_leaves_the_logits_as_they_are():
    found = of.rotation_similarity(Position(width=16, head_width=8, grid=GRID), 8)
    torch.testing.assert_close(found, torch.ones(15, 15))
