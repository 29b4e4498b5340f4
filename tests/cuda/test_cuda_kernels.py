"""Fused kernels on a GPU: against float64, and against the plain form in time."""
import copy
from functools import cache, partial

import pytest
import torch
from mmcv.ops import sigmoid_focal_loss
from torch.utils._python_dispatch import TorchDispatchMode

from mm_efficient import kernels
from mm_efficient.models import SOFT, EcoFormerPVT, EcoFormerTwins, ReduceFormer
from mm_efficient.models.base import fit_where_needed
from mm_efficient.models.ecoformer.kernel_hashing import (
    anchor_kernel,
    attend_by_codes,
    hash_attention,
    hash_codes,
)
from mm_efficient.models.reduceformer.backbone import ReductionAttention
from mm_efficient.models.soft.gaussian_attention import (
    gaussian_attention,
    landmark_kernel,
)
from mm_efficient.models.soft.newton_inverse import (
    normalized_inverse,
    regularized_inverse,
)

pytestmark = [pytest.mark.cuda, pytest.mark.part2]

# Images, heads and tokens of the first stage of SOFT-Tiny
SIZES = {'64x224x224': (64, 2, 56 * 56), '1x800x1344': (1, 2, 200 * 336)}
LANDMARKS, DIMS = 49, 32


@pytest.fixture
def switch():
    pytest.importorskip('triton')
    yield kernels.switch
    kernels.switch(False)


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) / 2).to('cuda', dtype)


def attention_case(size, dtype):
    """Tokens have the layout that SOFT gives them."""
    images, heads, tokens = SIZES[size]
    query, value = (random(images, tokens, heads, DIMS, seed=seed,
                           dtype=dtype).transpose(1, 2) for seed in (0, 1))
    landmarks = random(images, heads, LANDMARKS, DIMS, seed=2)
    inverse = random(images, heads, LANDMARKS, LANDMARKS, seed=3)
    return gaussian_attention, [query, landmarks, value, inverse]


def inverse_case(invert, size):
    images, heads, _ = SIZES[size]
    return invert, [landmark_kernel(random(images, heads, LANDMARKS, DIMS) / 2)]


def focal_case(dtype):
    """Level P3 of two images of 800 x 1344, nine anchors and 80 classes."""
    logits = random(2 * 100 * 168 * 9, 80, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(81, (len(logits), ), generator=generator).cuda()
    return lambda x: sigmoid_focal_loss(x, target, 2., .25, None, 'none'), [logits]


def reduction_case(size, dtype, channels_last):
    """Stage 3 of ReduceFormer-B1."""
    images, height, width = size
    format = torch.channels_last if channels_last else torch.contiguous_format
    return ReductionAttention(128, 14 * 14).cuda().attend, [
        random(images, 3 * 128, height, width, seed=seed, dtype=dtype).to(
            memory_format=format) for seed in (0, 1)]


CASES = {
    f'{invert.__name__} {size}': lambda invert=invert, size=size: (
        inverse_case(invert, size))
    for invert in (regularized_inverse, normalized_inverse) for size in SIZES
} | {
    f'gaussian_attention {size} {str(dtype)[6:]}': lambda size=size, dtype=dtype: (
        attention_case(size, dtype))
    for size in SIZES for dtype in (torch.float32, torch.float16, torch.bfloat16)
} | {
    f'reduction_attention {size} {str(dtype)[6:]} {channels_last=}': partial(
        reduction_case, size, dtype, channels_last)
    for size in ((64, 14, 14), (1, 50, 84))
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for channels_last in (False, True)
} | {
    f'sigmoid_focal_loss {str(dtype)[6:]}': lambda dtype=dtype: focal_case(dtype)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)}


class Kernels(TorchDispatchMode):
    """Whether a fused kernel was called."""

    called = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called |= func.namespace == 'mm_efficient'
        return func(*args, **(kwargs or {}))


def both_passes(function, inputs, dtype=None):
    """Value and gradients; the inputs are cast if there is a type."""
    out = function(*(x if dtype is None else x.to(dtype) for x in inputs))
    # In float32 first: the steps of float16 are too wide for that many
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    grads = torch.autograd.grad(out, inputs, weight.to(out.dtype))
    return [out.detach(), *grads]


def errors(results, expected):
    return [float((x.double() - y.double()).abs().max() / y.abs().max())
            for x, y in zip(results, expected)]


def milliseconds(function, inputs):
    from triton.testing import do_bench
    with torch.no_grad():
        forward = do_bench(lambda: function(*inputs))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both_passes(function, inputs)
    peak = torch.cuda.max_memory_allocated() - before
    return dict(forward_ms=forward, peak_gigabytes=peak / 1e9,
                both_ms=do_bench(lambda: both_passes(function, inputs)))


@pytest.mark.parametrize('case', CASES)
def test_kernels_cuda(case, switch, figures):
    """As accurate as the plain form; the figures say whether they are faster."""
    function, inputs = CASES[case]()
    inputs = [x.detach().requires_grad_() for x in inputs]
    expected = both_passes(function, inputs, torch.float64)
    figures[case] = measured = {}
    for name, on in (('plain', False), ('kernel', True)):
        switch(on)
        with Kernels() as kernel:
            results = both_passes(function, inputs)
        assert kernel.called == on
        measured[name] = dict(
            errors=errors(results, expected),
            **milliseconds(function, inputs))
    # Gradients in half precision are rounded to it
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(inputs[0].dtype, 1e-5)
    for fused, plain in zip(measured['kernel']['errors'], measured['plain']['errors']):
        assert fused <= 4 * plain + rounding


def hash_case(size, dtype):
    """Queries and values of EcoFormer-Twins-S's first stage, and hash functions."""
    images, heads, tokens = SIZES[size]
    query, value = (random(images, tokens, heads, DIMS, seed=seed, dtype=dtype)
                    for seed in (0, 1))
    anchors = torch.nn.functional.normalize(random(heads, 25, DIMS, seed=2), dim=-1)
    mean = anchor_kernel(query, anchors).mean((1, 2))[:, None]
    return [query, value], (anchors, mean, 6 * random(heads, 16, 25, seed=3))


def forced(codes, query, functions):
    """The given codes, with the straight-through gradient in float64."""
    anchors, mean, projection = (x.double() for x in functions)
    centred = anchor_kernel(query, anchors) - mean[:, None]
    projected = centred @ projection.transpose(1, 2)[:, None]
    inside = projected.detach().abs() < 1
    return codes + torch.where(inside, projected - projected.detach(), 0.), projected


def token_errors(results, expected):
    """Largest in 999 of 1000 tokens: rounding cuts off the gradient of single ones."""
    def error(x, y):
        by_token = (x.double() - y.double()).abs().amax(-1).flatten().sort()[0]
        return float(by_token[int(0.999 * len(by_token)) - 1] / y.abs().max())
    return [error(*pair) for pair in zip(results, expected)]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size', SIZES)
def test_hash_attention_cuda(size, dtype, switch, figures):
    """Codes unless rounding decides the sign; given the codes, value and gradients."""
    inputs, functions = hash_case(size, dtype)
    inputs = [x.requires_grad_() for x in inputs]
    switch(True)
    codes = torch.ops.mm_efficient.hash_attention(*inputs, *functions)[1]
    codes = codes.transpose(0, 1)  # (heads, images, tokens, bits)
    def function(query, value):
        return attend_by_codes(query, value, *functions)

    given = [x.double() for x in inputs]
    certain = forced(codes, given[0].detach(), functions)[1].abs() > 1e-4
    plain = hash_codes(inputs[0].detach(), *functions)
    assert certain.double().mean() > 0.99
    assert torch.equal(codes[certain].float(), plain[certain])
    expected = both_passes(lambda query, value: hash_attention(
        forced(codes.double(), query, functions)[0], value), inputs, torch.float64)
    figures[f'hash_attention {size} {str(dtype)[6:]}'] = measured = dict(
        equal_codes=float((codes == plain).double().mean()))
    for name, on in (('plain', False), ('kernel', True)):
        switch(on)
        measured[name] = dict(
            errors=token_errors(both_passes(function, inputs), expected),
            **milliseconds(function, inputs))
    rounding = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(dtype, 1e-4)
    assert max(measured['kernel']['errors']) < rounding


BACKBONES = {  # landmarks and padding as in detectors
    'SOFT-Tiny': partial(SOFT, 'tiny', pretrain_size=224),
    'SOFT-Tiny-Norm': partial(SOFT, 'tiny', True, pretrain_size=224),
    'ReduceFormer-B1': partial(ReduceFormer, 'b1', pretrain_size=224),
    'EcoFormer-PVT-B0': partial(EcoFormerPVT, 'b0'),
    'EcoFormer-Twins-S': partial(EcoFormerTwins, 's')}


@cache
def built(name):
    torch.manual_seed(0)
    return BACKBONES[name](drop_path_rate=0.).eval()


@cache
def fitted(name):
    """EcoFormer's tokens have different codes."""
    model = copy.deepcopy(built(name))
    fit_where_needed(model, random(2, 3, 96, 96).cpu())
    return model


def training_step(model, x, half=True):
    """Forward and backward pass; returns the gradients."""
    model.zero_grad()
    with torch.autocast('cuda', torch.float16, enabled=half):
        outs = model(x)
    # Scaled to the range of float16
    sum(1e3 * out.float().square().mean() for out in outs).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()
                      if p.grad is not None])


def output_and_gradients(model, x, half=True):
    """Of inference, then of a training step."""
    with torch.no_grad(), torch.autocast('cuda', torch.float16, enabled=half):
        out = model.eval()(x)[0].float()
    return out, training_step(model.train(), x, half)


@pytest.mark.parametrize('size', [(64, 224, 224), (2, 800, 1344)])
@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_with_kernels_cuda(name, size, switch, figures):
    """Under autocast as close to float32 as the plain form; figures say how fast."""
    from triton.testing import do_bench
    switch(False)
    x, measured = random(size[0], 3, *size[1:]), {}
    figures[f'{name} {size[0]}x{size[1]}x{size[2]} fp16'] = measured
    expected = output_and_gradients(copy.deepcopy(fitted(name)).cuda(), x, half=False)
    for form, on in (('plain', False), ('kernel', True)):
        switch(on)
        # anew: training changes batch-norm statistics
        model = copy.deepcopy(fitted(name)).cuda()
        with Kernels() as kernel:
            results = output_and_gradients(model, x)
        assert kernel.called == on
        measured[form] = dict(errors=[float((x - y).norm() / y.norm())
                                      for x, y in zip(results, expected)])
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training_step(model, x)
        peak = torch.cuda.max_memory_allocated() - before
        both = do_bench(partial(training_step, model, x))
        with torch.no_grad(), torch.autocast('cuda', torch.float16):
            forward = do_bench(partial(model.eval(), x))
        measured[form].update(forward_ms=forward, both_ms=both,
                              peak_gigabytes=peak / 1e9)
    for fused, plain in zip(measured['kernel']['errors'], measured['plain']['errors']):
        assert fused < 1.5 * plain + 2e-3


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_with_kernels_compiles_cuda(name, switch):
    """EcoFormer's hash functions are not fitted, so that no code is near a change."""
    model, x = copy.deepcopy(built(name)).cuda(), random(2, 3, 64, 96)
    model._known_fitted = True
    switch(True)
    with torch.no_grad():
        expected = model(x)[0]
        compiled = torch.compile(model, fullgraph=True)
        assert errors([compiled(x)[0]], [expected])[0] < 1e-3
