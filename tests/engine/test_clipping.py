import torch
from mmengine.optim import build_optim_wrapper
from timm.utils import agc
from torch import nn

from mm_efficient.engine.clipping import adaptive_clip_grad


def test_gradient_of_a_unit_is_limited_by_its_weights():
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[3., 4.], [3., 4.]])
    wrapper = build_optim_wrapper(model, dict(
        type='AGCOptimWrapper', optimizer=dict(type='SGD', lr=1.),
        clip_grad=dict(clip_factor=0.1)))
    before = model.weight.detach().clone()
    # gradients of norm 5, above 0.1 * 5, and of norm 0.05, below
    wrapper.update_params((model.weight * torch.tensor([[4., 3.], [.04, .03]])).sum())
    torch.testing.assert_close(
        before - model.weight.detach(), torch.tensor([[.4, .3], [.04, .03]]))


def test_default_factor():
    model = nn.Linear(2, 2)
    wrapper = build_optim_wrapper(model, dict(
        type='AGCOptimWrapper', optimizer=dict(type='SGD', lr=1.)))
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    (100 * model(torch.ones(1, 2)).sum()).backward()
    wrapper.step()
    norms = (model.weight.detach() - 1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((2, ), 0.01 * 2**0.5))
    # weights of norm 0 count as 1e-3
    torch.testing.assert_close(model.bias.detach().norm(), torch.tensor(1e-5))


def test_clips_as_timm_does():
    """Of all kinds of parameters, and with one that has no gradient in between."""
    torch.manual_seed(0)
    clipped = []
    for function in (adaptive_clip_grad, agc.adaptive_clip_grad):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape)) for shape in (
            (), (3, ), (2, 3), (1, 2), (4, 2, 3, 3))]
        for i, parameter in enumerate(parameters):
            parameter.grad = None if i == 2 else torch.randn(parameter.shape)
        function(parameters, clip_factor=0.3)
        clipped.append([x.grad for x in parameters if x.grad is not None])
    for ours, theirs in zip(*clipped, strict=True):
        torch.testing.assert_close(ours, theirs)
