"""Positions that are not finite read nothing, as in mmcv, and do not crash."""
import pytest
import torch
from mmcv import ops
from recorded import run


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name, key', [
    ('deform_conv', 'offset'), ('modulated', 'offset'),
    ('ms_deform_attn', 'locations')])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_positions_are_outside(name, key, value, dtype, operators):
    outside = {**operators[name], key: operators[name][key].clone()}
    outside[key][:, 0] = 1e4
    broken = {**outside, key: outside[key].clone()}
    broken[key][:, 0] = value
    expected, results = run(name, outside, dtype), run(name, broken, dtype)
    for result in results:
        assert torch.equal(results[result], expected[result]), result


def test_rois_without_samples():
    """With adaptive sampling a RoI of no size has none; mmcv's numbers for it."""
    features = torch.rand(1, 2, 5, 6, requires_grad=True)
    rois = torch.tensor([[0., 4, 4, 4, 4]])
    output = ops.roi_align(features, rois, (2, 2), 0.25, 0, 'max', True)
    output.sum().backward()
    assert (output == -10000).all() and not features.grad.any()
    pooled = ops.deform_roi_pool(features, rois, None, 2, 0.25)
    assert not pooled.any()
