"""Backbones compiled by inductor, one block per stage."""
import time

import pytest
import torch
from test_contract import SHALLOW, build, image
from test_cuda_backbones import is_hashed, rms_error, step, total_error
from torch._dynamo.testing import CompileCounterWithBackend

HALVES = [pytest.param(*param.values, id=param.id,
                       marks=pytest.mark.part3 if i % 2 else pytest.mark.part4)
          for i, param in enumerate(SHALLOW)]
pytestmark = [pytest.mark.cuda]
SIZES = [(2, 96, 128), (2, 160, 96), (2, 224, 320)]
every_backbone = pytest.mark.parametrize('cls, cfg', HALVES)


def make(cls, cfg, device, **options):
    return build(cls, cfg, pretrain_size=224, drop_path_rate=0.,
                 **options).train().to(device)


def compare(model, compiled, x, limit, dtype=None):
    """One training step of each; statistics and gradients have to be equal."""
    outs, grads, state = step(model, x, dtype)
    other_outs, other_grads, other_state = step(compiled, x, dtype)
    errors = [rms_error(b, a) for a, b in zip(outs, other_outs)]
    strip = '_orig_mod.'
    grad_error = total_error({key.removeprefix(strip): grad
                              for key, grad in other_grads.items()}, grads)
    assert max(errors) < limit and grad_error < 10 * limit
    for key, value in other_state.items():
        if key.endswith(('running_mean', 'running_var')):
            torch.testing.assert_close(value, state[key.removeprefix(strip)],
                                       rtol=1e-2, atol=1e-3)
    return max(errors), grad_error


@every_backbone
def test_compile_inductor(cls, cfg, device, figures, request):
    torch.compiler.reset()
    model = make(cls, cfg, device)
    counter = CompileCounterWithBackend('inductor')
    compiled = torch.compile(make(cls, cfg, device), backend=counter, fullgraph=True,
                             dynamic=True)
    begin, limit = time.perf_counter(), 0.1 if is_hashed(cls, cfg) else 1e-3
    errors = [compare(model, compiled, image(*size).to(device), limit)
              for size in SIZES]
    figures[request.node.name] = dict(
        seconds=time.perf_counter() - begin, graphs=counter.frame_count,
        output=max(a for a, _ in errors), gradient=max(b for _, b in errors))
    assert counter.frame_count <= 2


@every_backbone
def test_compile_with_cp(cls, cfg, device):
    """Under AMP, against eager with checkpointing."""
    torch.compiler.reset()
    model = make(cls, cfg, device, with_cp=True)
    compiled = torch.compile(make(cls, cfg, device, with_cp=True), fullgraph=True)
    compare(model, compiled, image(*SIZES[0]).to(device),
            0.2 if is_hashed(cls, cfg) else 2e-2, torch.float16)
    counts = [[value.item() for key, value in each.state_dict().items()
               if key.endswith('num_batches_tracked')] for each in (model, compiled)]
    assert counts[0] == counts[1] == [1] * len(counts[0])
