import pytest
import torch
import torch.nn.functional as F

from mm_efficient.models.soft.area_pooling import area_pool


def test_whole_cells_are_plain_averages():
    x = torch.randn(2, 3, 12, 8, 5)
    expected = F.adaptive_avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), (4, 2))
    out = area_pool(x, 4, 2)
    torch.testing.assert_close(out.flatten(0, 1).permute(0, 3, 1, 2), expected)


def test_borders_are_shared():
    x = torch.tensor([1., 2., 4.]).view(1, 1, 3, 1)
    expected = torch.tensor([(1 + 2 / 2) / 1.5, (2 / 2 + 4) / 1.5]).view(1, 1, 2, 1)
    torch.testing.assert_close(area_pool(x, 1, 2), expected)


@pytest.mark.parametrize('side', [1, 5, 7])
def test_same_size_is_the_identity(side):
    x = torch.randn(1, side, side, 3)
    assert torch.equal(area_pool(x, side, side), x)


def test_average_is_kept():
    x = torch.rand(1, 25, 42, 2)
    torch.testing.assert_close(area_pool(x, 7, 7).mean((1, 2)), x.mean((1, 2)))
