"""Backbones compiled by inductor, one block per stage, as a training compiles them."""
import logging
import time
from types import SimpleNamespace

import pytest
import torch
from test_contract import SHALLOW, build, image
from test_cuda_backbones import is_hashed, rms_error, step, total_error
from torch._dynamo.testing import CompileCounterWithBackend

from mm_efficient.engine import CompileBackboneHook

HALVES = [pytest.param(*param.values, id=param.id,
                       marks=pytest.mark.part3 if i % 2 else pytest.mark.part4)
          for i, param in enumerate(SHALLOW)]
pytestmark = [pytest.mark.cuda]
SIZES = [(2, 96, 128), (2, 160, 96), (2, 224, 320)]
every_backbone = pytest.mark.parametrize('cls, cfg', HALVES)


def make(cls, cfg, device, **options):
    return build(cls, cfg, pretrain_size=224, drop_path_rate=0.,
                 **options).train().to(device)


def compiled_by_hook(model):
    """Compile a model as training does; returns the counter of graphs."""
    counter = CompileCounterWithBackend('inductor')
    runner = SimpleNamespace(logger=logging.getLogger(__name__))
    CompileBackboneHook(backend=counter).change(runner, model)
    return counter


def compare(model, compiled, x, limit):
    """One training step of each; statistics and gradients have to be equal."""
    outs, grads, state = step(model, x)
    other_outs, other_grads, other_state = step(compiled, x)
    errors = [rms_error(b, a) for a, b in zip(outs, other_outs)]
    grad_error = total_error(other_grads, grads)
    assert max(errors) < limit and grad_error < 10 * limit
    for key, value in other_state.items():
        if key.endswith(('running_mean', 'running_var')):
            torch.testing.assert_close(value, state[key], rtol=1e-2, atol=1e-3)
    return max(errors), grad_error


@every_backbone
def test_compile_inductor(cls, cfg, device, figures, request):
    torch.compiler.reset()
    model = make(cls, cfg, device)
    compiled = make(cls, cfg, device)
    counter = compiled_by_hook(compiled)
    begin, limit = time.perf_counter(), 0.1 if is_hashed(cls, cfg) else 1e-3
    errors = [compare(model, compiled, image(*size).to(device), limit)
              for size in SIZES]
    figures[request.node.name] = dict(
        seconds=time.perf_counter() - begin, graphs=counter.frame_count,
        output=max(a for a, _ in errors), gradient=max(b for _, b in errors))
    assert counter.frame_count <= 2


@every_backbone
def test_compile_with_cp(cls, cfg, device):
    """Under AMP as close to float32 as eager mode is, both with checkpointing."""
    torch.compiler.reset()
    exact, model, compiled = (make(cls, cfg, device, with_cp=True) for _ in range(3))
    compiled_by_hook(compiled)
    x = image(*SIZES[0]).to(device)
    outs, grads, _ = step(exact, x)
    found = []
    for each in (model, compiled):
        half, half_grads, state = step(each, x, torch.float16, 2**10)
        assert all(value == 1 for name, value in state.items()
                   if name.endswith('num_batches_tracked'))
        found.append((max(rms_error(b, a) for a, b in zip(outs, half)),
                      total_error(half_grads, grads)))
    # A flipped hash bit is no rounding error
    slack = 0.2 if is_hashed(cls, cfg) else 2e-3
    for error, eager_error in zip(found[1], found[0]):
        assert error < 1.5 * eager_error + slack
