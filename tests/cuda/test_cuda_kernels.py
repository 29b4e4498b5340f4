"""Fused kernels on a GPU: against float64, and against the plain form in time."""
import pytest
import torch
from mmcv.ops import sigmoid_focal_loss

from mm_efficient import kernels
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


CASES = {
    f'{invert.__name__} {size}': lambda invert=invert, size=size: (
        inverse_case(invert, size))
    for invert in (regularized_inverse, normalized_inverse) for size in SIZES
} | {
    f'gaussian_attention {size} {str(dtype)[6:]}': lambda size=size, dtype=dtype: (
        attention_case(size, dtype))
    for size in SIZES for dtype in (torch.float32, torch.float16, torch.bfloat16)
} | {
    f'sigmoid_focal_loss {str(dtype)[6:]}': lambda dtype=dtype: focal_case(dtype)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)}


def both_passes(function, inputs, dtype=None):
    """Value and gradients; the inputs are cast if there is a type."""
    out = function(*(x if dtype is None else x.to(dtype) for x in inputs))
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
    grads = torch.autograd.grad((out * weight.view(out.shape)).sum(), inputs)
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
        measured[name] = dict(
            errors=errors(both_passes(function, inputs), expected),
            **milliseconds(function, inputs))
    # Gradients in half precision are rounded to it
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(inputs[0].dtype, 1e-5)
    for fused, plain in zip(measured['kernel']['errors'], measured['plain']['errors']):
        assert fused <= 4 * plain + rounding


@pytest.mark.parametrize('normalized', [False, True])
def test_soft_with_kernels_cuda(normalized, switch, figures):
    """The backbone under autocast."""
    from triton.testing import do_bench

    from mm_efficient.models import SOFT
    torch.manual_seed(0)
    model, x = SOFT('tiny', normalized).cuda().eval(), random(64, 3, 224, 224)
    outs, times = [], {}
    with torch.no_grad(), torch.autocast('cuda', torch.float16):
        for name, on in (('plain', False), ('kernel', True)):
            switch(on)
            outs.append(model(x)[0])
            times[f'{name}_ms'] = do_bench(lambda: model(x))
    figures[f'SOFT-Tiny {normalized=} 64x224x224 fp16'] = times
    assert errors(outs[1:], outs[:1])[0] < 2e-2


def test_soft_with_kernels_compiles_cuda(switch):
    from mm_efficient.models import SOFT
    torch.manual_seed(0)
    model, x = SOFT('tiny').cuda().eval(), random(2, 3, 64, 96)
    switch(True)
    with torch.no_grad():
        expected = model(x)[0]
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(compiled(x)[0], expected, rtol=1e-3, atol=1e-3)
