"""From pixels to tokens."""

import pytest
import torch
from torch.nn import functional

from vitlab.model.stem import Convolutions, Patches


def test_patches_are_a_convolution_whose_stride_is_its_kernel():
    stem = Patches(image_size=(6, 10), channels=3, width=8, patch=2)
    x = torch.randn(2, 3, 6, 10)
    kernel = stem.projection.weight.view(8, 3, 2, 2)
    expected = functional.conv2d(x, kernel, stem.projection.bias, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 4, 7, 8, 14, 16])
def test_the_convolutional_stem_gives_one_token_a_patch(patch):
    stem = Convolutions(image_size=(patch * 3, patch * 5), channels=3, width=32, patch=patch)
    assert stem(torch.randn(2, 3, patch * 3, patch * 5)).shape == (2, 15, 32)
    assert (stem.grid.height, stem.grid.width) == (3, 5)


def test_in_evaluation_the_convolutional_stem_judges_each_image_alone():
    stem = Convolutions(image_size=(8, 8), channels=1, width=16, patch=4).eval()
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(stem(x)[:1], stem(x[:1]), atol=1e-5, rtol=1e-5)
