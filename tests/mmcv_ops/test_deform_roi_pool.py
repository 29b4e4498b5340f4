"""What the recorded cases cannot show of deformable RoI pooling."""
import torch
from mmcv import ops


def test_gradients_at_the_border_are_those_of_the_output():
    """mmcv's extrapolate there."""
    torch.manual_seed(0)
    features = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(
        [[0, -9.3, -6.1, 14.2, 16.9], [0, 4.2, 5.3, 31.6, 25.7]]).double()
    offset = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    for sampling_ratio in (0, 2):
        assert torch.autograd.gradcheck(
            lambda x, y, ratio=sampling_ratio: ops.deform_roi_pool(
                x, rois, y, (2, 2), 0.25, ratio, 0.1), (features, offset),
            fast_mode=True)


def test_no_rois():
    features = torch.rand(1, 2, 5, 6, requires_grad=True)
    offset = torch.zeros(0, 2, 3, 3, requires_grad=True)
    output = ops.deform_roi_pool(features, torch.zeros(0, 5), offset, 3)
    assert output.shape == (0, 2, 3, 3)
    output.sum().backward()
    assert not features.grad.any()
