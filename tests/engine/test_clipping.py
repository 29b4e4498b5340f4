import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

import mm_efficient  # noqa: F401


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
