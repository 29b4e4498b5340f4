"""Operators on a GPU against the CPU, a plain form, or float64."""
import time

import pytest
import torch
from mmcv import ops
from mmpretrain.registry import MODELS
from recorded import CALLS, operator_tensors, run
from test_layers import float32_operators
from torch.nn.attention import SDPBackend, sdpa_kernel

from mm_efficient.models.soft import gaussian_attention as gaussian
from mm_efficient.models.soft import newton_inverse as newton

pytestmark = [pytest.mark.cuda, pytest.mark.part2]

HALF = [torch.float16, torch.bfloat16]


def random(*shape, seed=0, dtype=torch.float32, device='cuda'):
    """Normally distributed numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).to(device)


def measure(function):
    """Result, seconds and peak gigabytes of the second call."""
    function()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, begin = torch.cuda.memory_allocated(), time.perf_counter()
    result = function()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return result, seconds, (torch.cuda.max_memory_allocated() - before) / 1e9


# ---------------------------------------------------------------- attention


def attention_inputs(tokens=100, landmarks=6, dtype=torch.float64):
    query, value = (random(2, 3, tokens, 4, seed=seed, dtype=dtype) for seed in (0, 1))
    marks = random(2, 3, landmarks, 4, seed=2, dtype=dtype)
    return query, marks, value, random(2, 3, landmarks, landmarks, seed=3, dtype=dtype)


def test_gaussian_attention_chunks_cuda(monkeypatch):
    inputs = [x.requires_grad_() for x in attention_inputs()]
    weight = random(2, 3, 100, 4, seed=4, dtype=torch.float64)

    def run():
        out = gaussian.gaussian_attention(*inputs)
        return out, *torch.autograd.grad((out * weight).sum(), inputs)
    whole = run()
    monkeypatch.setattr(gaussian, 'CHUNK_ENTRIES_DEFAULT', 2 * 3 * 6 * 7)  # 7 tokens
    for chunked, expected in zip(run(), whole):
        torch.testing.assert_close(chunked, expected)
    small = [x.requires_grad_() for x in attention_inputs(tokens=20, landmarks=3)]
    assert torch.autograd.gradcheck(gaussian.gaussian_attention, small)


def landmark_matrices(device='cuda'):
    return gaussian.landmark_kernel(random(8, 4, 49, 32, device=device) / 2)


@pytest.mark.parametrize('inverse', ['regularized_inverse', 'normalized_inverse'])
def test_newton_inverse_tf32(inverse, figures):
    function = getattr(newton, inverse)
    expected = function(landmark_matrices('cpu').double())
    for tf32, limit in ((False, 1e-3), (True, 1e-2)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        result = function(landmark_matrices()).cpu().double()
        error = float((result - expected).abs().max() / expected.abs().max())
        figures[f'{inverse} {"tf32" if tf32 else "fp32"}'] = error
        assert result.isfinite().all() and error < limit


@pytest.mark.parametrize('name', float32_operators())
@pytest.mark.parametrize('dtype', HALF)
def test_ops_float32_under_autocast(name, dtype, device, monkeypatch):
    call = float32_operators(device)[name]
    for entries in (2**26, 60):  # SOFT's attention in one chunk and in several
        monkeypatch.setattr(gaussian, 'CHUNK_ENTRIES_DEFAULT', entries)
        expected = call()
        with torch.autocast('cuda', dtype):
            result = call()
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_lowformer_uses_flash(layout):
    model = MODELS.build(dict(type='LowFormer', arch='b0')).cuda().eval()
    x = random(2, 3, 224, 224).contiguous(memory_format=layout)
    model = model.to(memory_format=layout)
    with torch.no_grad(), torch.autocast('cuda', torch.float16), \
            sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert model(x)[0].isfinite().all()


# ------------------------------------------------------------ mmcv's operators


def random_boxes(num, size=600):
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(size, (num, 2), generator=generator)
    extent = torch.randint(1, 200, (num, 2), generator=generator)
    scores = torch.randperm(num, generator=generator) / num
    return torch.cat([corners, corners + extent], 1).float(), scores


@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
@pytest.mark.parametrize('offset', [0, 1])
def test_mmcv_nms_cuda_equals_cpu(dtype, offset):
    boxes, scores = random_boxes(1000)
    boxes = boxes.to(dtype)
    _, expected = ops.nms(boxes, scores.to(boxes), 0.5, offset)
    _, keep = ops.nms(boxes.cuda(), scores.to(boxes).cuda(), 0.5, offset)
    if dtype == torch.float32:
        assert keep.cpu().tolist() == expected.tolist()
    assert 0.97 < len(keep) / len(expected) < 1.03  # ties in half precision


@pytest.fixture
def determinism(request):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
@pytest.mark.parametrize('determinism', [False, True], indirect=True)
def test_mmcv_roi_align_cuda(dtype, determinism, figures, request):
    maps = random(1, 256, 200, 336).to(dtype)
    boxes, _ = random_boxes(512)
    rois = torch.cat([torch.zeros(512, 1), boxes], 1).to('cuda', dtype)
    leaf = maps.requires_grad_()

    def run():
        out = ops.roi_align(leaf, rois, (7, 7), 0.25, 0, 'avg', True)
        return out, *torch.autograd.grad(out, leaf, torch.ones_like(out))
    results, seconds, gigabytes = measure(run)
    figures[request.node.name] = dict(seconds=seconds, gigabytes=gigabytes)
    assert seconds < 1 and gigabytes < 1
    other = maps.detach().cpu().requires_grad_()
    out = ops.roi_align(other, rois.cpu(), (7, 7), 0.25, 0, 'avg', True)
    expected = out, *torch.autograd.grad(out, other, torch.ones_like(out))
    for a, b in zip(results, expected):
        assert a.dtype == dtype
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(a.cpu().float(), b.float(), rtol=tolerance,
                                   atol=tolerance)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_mmcv_focal_cuda(dtype, figures, request):
    """Level P3 of two images of 800 x 1344, nine anchors and 80 classes."""
    logits = (3 * random(2 * 100 * 168 * 9, 80)).to(dtype).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(81, (len(logits), ), generator=generator).cuda()

    def run(logits=logits, target=target):
        losses = ops.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
        ones = losses.new_ones(()).expand_as(losses)  # takes no memory
        return losses.detach(), *torch.autograd.grad(losses, logits, ones)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    run()
    torch.cuda.set_sync_debug_mode('default')
    results, seconds, gigabytes = measure(run)
    figures[request.node.name] = dict(seconds=seconds, gigabytes=gigabytes)
    rows = slice(0, 20000)
    double = logits[rows].detach().double().cpu().requires_grad_()
    expected = run(double, target[rows].cpu())
    for result, wide in zip(results, expected):
        assert result.isfinite().all()
        torch.testing.assert_close(result[rows].cpu().double(), wide, rtol=2e-3,
                                   atol=2e-3)
    # The loss, its gradient, whether a class is the sample's, and float32 temporaries
    # of three times the logits; the allocator rounds up
    limit = 2 * logits.nbytes + logits.numel() * (1 + 3 * 4)
    assert gigabytes < 1.01 * limit / 1e9


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize('name', [name for name in CALLS if 'nms' not in name])
def test_mmcv_operators_cuda_equal_cpu(name, dtype):
    if name == 'sync_bn' and dtype != torch.float32:
        pytest.skip("mmcv's own check refuses it")
    tensors = {key: tensor.to(dtype).double() if tensor.is_floating_point() else tensor
               for key, tensor in operator_tensors()[name].items()}
    wide = torch.float32 if name == 'sync_bn' else torch.float64
    expected = run(name, tensors, wide)
    for key, result in run(name, tensors, dtype, 'cuda').items():
        if key == 'grad_input' and 'max' in name and dtype in HALF:
            continue  # mmcv keeps the position of the largest sample in half precision
        assert result.dtype == dtype
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 2e-2)
        tolerance *= float(expected[key].abs().max())
        torch.testing.assert_close(
            result.cpu().to(wide), expected[key].to(wide), rtol=0, atol=tolerance)


def deformable_attention():
    """Encoder of Deformable DETR, two images of 800 x 1344."""
    shapes = [(100, 168), (50, 84), (25, 42), (13, 21)]
    sizes = torch.tensor([height * width for height, width in shapes])
    keys = int(sizes.sum())
    starts = sizes.cumsum(0) - sizes
    value, locations = random(2, keys, 8, 32), random(2, keys, 8, 4, 4, 2).sigmoid()
    weights = random(2, keys, 8, 16).softmax(-1).view(2, keys, 8, 4, 4)
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    shapes, starts = torch.tensor(shapes).cuda(), starts.cuda()
    return [value, locations, weights], lambda value, locations, weights: (
        function.apply(value, shapes, starts, locations, weights, 64))


def modulated_convolution():
    """DyHead on level P3 of two images of 800 x 1344."""
    inputs = [random(2, 256, 100, 168), random(2, 18, 100, 168),
              random(2, 9, 100, 168).sigmoid(), random(256, 256, 3, 3)]
    return inputs, lambda *inputs: ops.modulated_deform_conv2d(*inputs, None, 1, 1)


def upsampling():
    """The largest level of an FPN with CARAFE, two images of 800 x 1344."""
    inputs = [random(2, 256, 100, 168), random(2, 25, 200, 336).softmax(1)]
    return inputs, lambda *inputs: ops.carafe(*inputs, 5, 1, 2)


@pytest.mark.parametrize('make', [
    deformable_attention, modulated_convolution, upsampling])
def test_mmcv_operators_cost(make, figures, request):
    inputs, function = make()
    for tensor in inputs:
        tensor.requires_grad_()

    def step():
        output = function(*inputs)
        return torch.autograd.grad(output, inputs, torch.ones_like(output))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    step()
    torch.cuda.set_sync_debug_mode('default')
    _, seconds, gigabytes = measure(step)
    figures[request.node.name] = dict(seconds=seconds, gigabytes=gigabytes)
    assert seconds < 1 and gigabytes < 6
