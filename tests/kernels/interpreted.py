"""Kernels in Triton's interpreter against their plain forms: interpreted.py FILE

In a process of its own, because Triton reads TRITON_INTERPRET when it is imported.
Writes errors by case: of the value and of each gradient, of the kernel and of the plain
form, both in float32 and relative to the plain form in float64.
"""
import json
import os
import sys
from pathlib import Path

os.environ['TRITON_INTERPRET'] = '1'

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from functorch.compile import make_boxed_func  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from mm_efficient import kernels  # noqa: E402
from mm_efficient.mmcv_ops import (  # noqa: E402
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
)
from mm_efficient.models.ecoformer.kernel_hashing import (
    anchor_kernel,
    attend_by_codes,
)
from mm_efficient.models.reduceformer.backbone import ReductionAttention
from mm_efficient.models.soft.gaussian_attention import (  # noqa: E402
    gaussian_attention,
    landmark_kernel,
)
from mm_efficient.models.soft.newton_inverse import (  # noqa: E402
    normalized_inverse,
    regularized_inverse,
)

patch_tensor = interpreter._patch_lang_tensor


def patch_index(tensor, scope):
    """Scalars as indices: Triton 3.6 converts arrays, which NumPy 2.4 refuses."""
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, '__index__', lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = patch_index


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()


def matrices(count, scale):
    """Kernel matrices of two images with two heads."""
    return landmark_kernel(scale * random(2, 2, count, 8)).detach().requires_grad_()


def attention(tokens, dtype):
    """Two images, two heads, as in SOFT a view of (B, tokens, heads, channels)."""
    def heads(seed, dtype=dtype):
        x = 0.4 * random(2, tokens, 2, 16, seed=seed).detach().transpose(1, 2)
        return x.to(dtype).requires_grad_()
    landmarks = heads(2, torch.float32)[:, :, :11].detach().requires_grad_()
    return gaussian_attention, [heads(0), landmarks, heads(1), random(2, 2, 11, 11)]


def reduction(size, dtype=torch.float32, pretrain_tokens=None, channels_last=False):
    """At one position no query is positive."""
    def scale(seed):
        x = random(size[0], 3 * 24, *size[1:], seed=seed).detach()
        x[:, :24, 2, 3] = -1
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        return x.to(dtype).requires_grad_()
    return (ReductionAttention(24, pretrain_tokens).attend, [scale(0), scale(1)])


def hashing(images, tokens, heads, dims, dtype=torch.float32):
    """Rounding flips no bit, and cuts off no gradient."""
    query, value = (
        random(images, tokens, heads, dims, seed=seed).detach().to(dtype)
        .requires_grad_() for seed in (0, 1))
    anchors = F.normalize(random(heads, 25, dims, seed=2).detach(), dim=-1)
    mean = anchor_kernel(query.detach(), anchors).mean((1, 2))[:, None]
    functions = anchors, mean, 3 * random(heads, 16, 25, seed=3).detach()
    centred = (anchor_kernel(query.detach().double(), anchors.double())
               - mean.double()[:, None])
    size = (centred @ functions[2].double().transpose(1, 2)[:, None]).abs()
    assert size.min() > 1e-5 and (size - 1).abs().min() > 1e-5 and size.max() > 1
    return (lambda q, v: attend_by_codes(
        q, v, *(x.to(torch.promote_types(x.dtype, q.dtype)) for x in functions)),
            [query, value])


class FocalLoss(torch.autograd.Function):
    """As mmcv calls the operators, which fill what they are given."""

    @staticmethod
    def forward(ctx, logits, target, weight, gamma):
        ctx.save_for_backward(logits)
        ctx.settings = target, weight, gamma
        out = torch.empty_like(logits)
        sigmoid_focal_loss_forward(logits, target, weight, out, gamma, 0.25)
        return out

    @staticmethod
    def backward(ctx, grad):
        logits, = ctx.saved_tensors
        target, weight, gamma = ctx.settings
        slope = torch.empty_like(logits)
        sigmoid_focal_loss_backward(logits, target, weight, slope, gamma, 0.25)
        return slope * grad, None, None, None


def focal(dtype, gamma=2., weighted=False):
    """Background, class 7, label -1, and logits of any confidence."""
    target = torch.arange(300) % 9 - 1
    weight = torch.linspace(1, 2, 7) if weighted else torch.empty(0)
    logits = (8 * random(300, 7).detach()).to(dtype)
    logits[1], logits[8] = 200, -200
    return (lambda x: FocalLoss.apply(x, target, weight, gamma),
            [logits.requires_grad_()])


CASES = {
    'sigmoid_focal_loss': focal(torch.float32),
    'sigmoid_focal_loss, half': focal(torch.float16, weighted=True),
    'sigmoid_focal_loss, gamma 0': focal(torch.float32, 0., True),
    # One program of several steps, the last one incomplete; and less than a step
    'attention': attention(150, torch.float32),
    'attention, half': attention(20, torch.float16),
    'reduction_attention': reduction((2, 3, 23)),
    'reduction_attention, half': reduction((2, 11, 6), torch.float16, 49, True),
    'hash_attention': hashing(2, 70, 2, 32),
    'hash_attention, half': hashing(2, 20, 2, 16, torch.float16),
    **{f'{invert.__name__}, {count} landmarks': (invert, [matrices(count, scale)])
       for invert in (regularized_inverse, normalized_inverse)
       for count, scale in ((1, 1.), (11, 0.5), (49, 0.3))},
    # Rows of equal sums share the gradient of the largest
    'normalized_inverse, equal degrees': (normalized_inverse, [
        (0.5 * torch.eye(4) + 0.5).expand(2, 2, 4, 4).contiguous().requires_grad_()]),
}


def computed(function, inputs, dtype=None):
    """Value and gradients; the inputs are cast if there is a type."""
    given = [x if dtype is None else x.to(dtype) for x in inputs]
    out = function(*given)
    weight = random(*out.shape, seed=9, dtype=out.dtype).detach()
    grads = torch.autograd.grad((out * weight).sum(), inputs)
    assert [x.dtype for x in grads] == [x.dtype for x in inputs]
    return [x.detach().double() for x in (out, *grads)]


def error(x, expected):
    return float((x - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


class Watch(TorchDispatchMode):
    """Names of our operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == 'mm_efficient':
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def compared(function, inputs):
    kernels.switch(True)
    with Watch() as watch:
        fused = computed(function, inputs)
    kernels.switch(False)
    expected = computed(function, inputs, torch.float64)
    plain = computed(function, inputs)
    return dict(operators=watch.names,
                fused=[error(*pair) for pair in zip(fused, expected)],
                plain=[error(*pair) for pair in zip(plain, expected)])


def compiled(function, inputs):
    """One graph, with and without gradients; returns the error of both."""
    names = []

    def record(graph, _):
        names.extend(node.target.name() for node in graph.graph.nodes
                     if getattr(node.target, 'namespace', '') == 'mm_efficient')
        return make_boxed_func(graph.forward)
    kernels.switch(True)
    whole = torch.compile(function, fullgraph=True, dynamic=True, backend=aot_autograd(
        fw_compiler=record, bw_compiler=record))
    results = computed(whole, inputs)
    errors = [error(*pair) for pair in zip(results, computed(function, inputs))]
    return dict(operators=names, errors=errors)


def exported(function, inputs):
    """Any number of tokens; returns the operators of the graph and the error."""
    kernels.switch(True)

    class Module(torch.nn.Module):

        def forward(self, query, landmarks, value, inverse):
            return function(query, landmarks, value, inverse)
    tokens = {2: torch.export.Dim('tokens')}
    program = torch.export.export(
        Module(), tuple(x.detach() for x in inputs),
        dynamic_shapes=dict(query=tokens, landmarks=None, value=tokens, inverse=None))
    query, landmarks, value, inverse = (x.detach() for x in inputs)
    fewer = query[:, :, :-3], landmarks, value[:, :, :-3], inverse
    with torch.no_grad(), Watch() as watch:
        result = program.module()(*fewer)
    return dict(operators=watch.names, errors=[error(result, function(*fewer))])


def main(path):
    kernels.switch(True)
    from mm_efficient.kernels import tiling
    tiling.PROGRAMS = 6  # two parts of the tokens per head
    results = {name: compared(*case) for name, case in CASES.items()}
    results['compiled'] = {
        'reduction_attention': compiled(*reduction((1, 4, 4), torch.float16, 49, True)),
        'hash_attention': compiled(*hashing(1, 9, 1, 16, torch.float16))} | {
        name: compiled(*CASES[name]) for name in (
            'attention, half', 'regularized_inverse, 11 landmarks',
            'normalized_inverse, 11 landmarks')}
    results['exported'] = exported(*CASES['attention, half'])
    Path(path).write_text(json.dumps(results))


if __name__ == '__main__':
    main(*sys.argv[1:])
