"""Backbones compiled as a training compiles them, one block per stage."""
import logging
from types import SimpleNamespace

import pytest
import torch
from test_contract import SHALLOW, build, image
from torch._dynamo.testing import CompileCounterWithBackend

from mm_efficient.engine import CompileBackboneHook


@pytest.mark.slow  # tests/engine/test_backbone_speed.py shows it on a small module
@pytest.mark.parametrize('cls, cfg', SHALLOW)
def test_two_graphs_for_all_sizes(cls, cfg):
    """One for square images and one for all others, also with checkpointing."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend('aot_eager')
    options = dict(pretrain_size=224, drop_path_rate=0., with_cp=True)
    models = [build(cls, cfg, **options).train() for _ in range(2)]
    hook = CompileBackboneHook(backend=counter)
    hook.change(SimpleNamespace(logger=logging.getLogger('test')), models[1])
    for size in (64, 64), (64, 96), (128, 64), (96, 160):
        x = image(2, *size)
        for model in models:
            model.zero_grad()
            sum(y.square().mean() for y in model(x)).backward()
        gradients = [torch.cat([p.grad.flatten() for p in model.parameters()])
                     for model in models]
        assert torch.dist(*gradients) < 1e-3 * gradients[0].norm()
    assert counter.frame_count <= 2
