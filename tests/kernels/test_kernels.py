"""Fused kernels: the switch, values, gradients, and compilation without a GPU."""
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mm_efficient import kernels

HERE = Path(__file__).parent
CASES = (
    'attention', 'attention, half', 'reduction_attention', 'reduction_attention, half',
    'hash_attention', 'hash_attention, half', 'regularized_inverse, 1 landmarks',
    'regularized_inverse, 11 landmarks', 'regularized_inverse, 49 landmarks',
    'normalized_inverse, 1 landmarks', 'normalized_inverse, 11 landmarks',
    'normalized_inverse, 49 landmarks', 'normalized_inverse, equal degrees',
    'sigmoid_focal_loss', 'sigmoid_focal_loss, half', 'sigmoid_focal_loss, gamma 0')


@pytest.fixture
def switched_on(monkeypatch):
    pytest.importorskip('triton')
    monkeypatch.setattr(kernels, 'enabled', False)
    kernels.switch(True)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """By case, what Triton's interpreter computed."""
    pytest.importorskip('triton')
    path = tmp_path_factory.mktemp('kernels') / 'results.json'
    subprocess.run([sys.executable, HERE / 'interpreted.py', path], check=True,
                   env=dict(os.environ, PYTHONPATH=os.pathsep.join(
                       [str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')])))
    return json.loads(path.read_text())


@pytest.mark.parametrize('case', CASES)
def test_kernels_compute_the_plain_form(results, case):
    """As accurately as the plain form in float32, value and every gradient."""
    found = results[case]
    name = case.partition(',')[0]
    name = 'gaussian_attention' if name == 'attention' else name
    assert found['operators'] == [
        f'mm_efficient::{name}', f'mm_efficient::{name}_backward']
    # A gradient that is in half precision is rounded to it
    rounding = 1e-3 if 'half' in case else 2e-6
    for fused, plain in zip(found['fused'], found['plain'], strict=True):
        assert fused <= 4 * plain + rounding


def test_all_interpreted_cases_are_compared(results):
    assert set(results) == {*CASES, 'compiled', 'exported'}


def test_kernels_compile_to_one_graph(results):
    for name, found in results['compiled'].items():
        assert len(found['operators']) == 2, name
        assert max(found['errors']) < 1e-6, name


def test_kernels_are_kept_by_export(results):
    found = results['exported']
    assert found['operators'] == ['mm_efficient::gaussian_attention']
    assert max(found['errors']) < 1e-6


def test_kernels_are_off_by_default():
    assert not kernels.enabled
    with FakeTensorMode():
        assert not kernels.use_kernel(torch.empty(2, device='cuda'))


def test_kernels_serve_float32_and_half_on_a_gpu(switched_on):
    assert not kernels.use_kernel(torch.empty(2))
    with FakeTensorMode():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert kernels.use_kernel(torch.empty(2, device='cuda', dtype=dtype))
        assert not kernels.use_kernel(torch.empty(2, device='cuda').double())
    kernels.switch(False)
    test_kernels_are_off_by_default()


def test_hashing_kernel_needs_values_of_the_queries_size(switched_on):
    from mm_efficient.models.ecoformer.kernel_hashing import _kernel_serves
    with FakeTensorMode():
        functions = [torch.empty(2, *shape, device='cuda')
                     for shape in ((25, 32), (1, 25), (16, 25))]
        query, shorter = (torch.empty(1, 9, 2, dims, device='cuda')
                          for dims in (32, 16))
        assert _kernel_serves(query, query, *functions)
        assert not _kernel_serves(query, shorter, *functions)


def test_nan_stays_in_the_gaussian_kernel(own_cache):
    """A GPU's minimum of NaN and 0 is 0: diverged queries would look sound."""
    module = kernel_module('gaussian_attention')
    compiled = compile_for_gpu(module, '_distribute',
                               dict(D=32, M=16, N=module.TOKENS))
    assert 'ex2' in compiled.asm['ptx'] and 'min.f32' not in compiled.asm['ptx']


@pytest.mark.parametrize('value', ['1', '0', ''])
def test_environment_switches_kernels(monkeypatch, value):
    pytest.importorskip('triton')
    monkeypatch.setenv('MM_EFFICIENT_KERNELS', value)
    try:
        assert importlib.reload(kernels).enabled == (value == '1')
    finally:
        kernels.switch(False)


def test_unknown_values_of_the_switch_warn(monkeypatch):
    monkeypatch.setenv('MM_EFFICIENT_KERNELS', 'on')
    with pytest.warns(UserWarning, match='KERNELS=on has no effect: set it to 1'):
        assert not importlib.reload(kernels).enabled


def test_without_triton_the_switch_warns(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setenv('MM_EFFICIENT_KERNELS', '1')
    with pytest.warns(UserWarning, match='no effect: Triton is not installed'):
        importlib.reload(kernels)
    assert not kernels.enabled


def kernel_module(name):
    return importlib.import_module(f'mm_efficient.kernels.{name}')


def kernel_functions():
    """Every kernel that is launched, by name, and its sizes in SOFT.

    Of 64 landmarks, the largest, and of the other families' sizes only what compiles in
    seconds.
    """
    start = dict(HALVINGS=10, LIMIT=1.01)
    newton, attention, focal = map(kernel_module, (
        'newton_inverse', 'gaussian_attention', 'focal_loss'))
    yield from ((newton, name, {**constants, 'BLOCK': block})
                for name, block, constants in (
                    ('_regularized', 64, dict(REGULARIZER=0.01)),
                    ('_regularized_backward', 64, {}), ('_normalized', 32, start),
                    ('_normalized_backward', 32, start),
                    ('_largest_degree_backward', 64, {})))
    yield from ((attention, name, dict(D=32, M=64, N=attention.TOKENS))
                for name in ('_summarise', '_mix', '_mix_backward', '_distribute',
                             '_distribute_backward'))
    yield from ((focal, '_focal', dict(WEIGHTED=True, SLOPE=slope, BLOCK=focal.BLOCK))
                for slope in (False, True))
    yield from reduction_functions(64, 4, True)
    yield from hash_functions(16, 16)


def reduction_functions(channels, positions, channels_last):
    module = kernel_module('reduction_attention')
    constants = dict(C=channels, T=positions, PARTS=module.MAX_PARTS)
    if channels_last:
        constants.update(x_channel=1, y_channel=1)
    return [(module, name, constants) for name in (
        '_summarise', '_gate', '_gate_backward', '_spread_backward')]


def hash_functions(dims, tokens):
    module = kernel_module('hash_attention')
    parts = kernel_module('tiling').MAX_PARTS
    constants = dict(D=dims, M=32, B=module.BITS, N=tokens, PARTS=parts)
    return [(module, name, constants) for name in (
        '_sum_units', '_encode', '_distribute', '_collect_backward',
        '_distribute_backward')]


NUMBERS = {'m', 'groups', 'heads', 'steps', 'tokens', 'part_tokens', 'number',
           'entries', 'classes', 'positions', 'part_positions', 'channels'}
HALF = {'query', 'value', 'grad', 'grad_query', 'grad_value', 'qkv', 'local',
        'grad_qkv', 'grad_local'}


def compile_for_gpu(module, name, constants):
    """Compile a kernel for a Hopper GPU, without one."""
    import triton
    from triton.backends.compiler import GPUTarget
    function = getattr(module, name)
    signature = {}
    for argument in function.arg_names:
        if argument in NUMBERS or argument[1:2] == '_':
            signature[argument] = 'i32'
        elif argument == 'target':
            signature[argument] = '*i64'
        elif argument == 'codes':
            signature[argument] = '*i8'
        elif argument in HALF and 'attention' in module.__name__:
            signature[argument] = '*fp16'
        else:
            signature[argument] = (
                'fp32' if argument in ('zero', 'gamma', 'alpha', 'factor') else '*fp32')
    constants = {key: value for key, value in constants.items() if key in signature}
    source = triton.compiler.ASTSource(
        function, {**signature, **dict.fromkeys(constants, 'constexpr')}, constants)
    return triton.compile(source, target=GPUTarget('cuda', 90, 32),
                          options=dict(num_warps=module.WARPS))


def stack_bytes(cubin, folder):
    """What a thread keeps outside its registers."""
    import triton
    path = folder / 'kernel.cubin'
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    usage = subprocess.run([tool, '--dump-resource-usage', path], check=True,
                           capture_output=True, text=True).stdout
    return int(usage.partition('STACK:')[2].split()[0])


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    pytest.importorskip('triton')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path / 'cache'))


@pytest.mark.slow
@pytest.mark.parametrize('name, limit', [('_normalized', 0),
                                         ('_normalized_backward', 128)])
def test_normalized_inverse_of_64_landmarks_fits(own_cache, tmp_path, name, limit):
    """The gradient lacks a few registers, for which threads have memory."""
    module = importlib.import_module('mm_efficient.kernels.newton_inverse')
    compiled = compile_for_gpu(module, name, dict(HALVINGS=10, LIMIT=1.01, BLOCK=64))
    assert stack_bytes(compiled.asm['cubin'], tmp_path) <= limit
    assert compiled.metadata.shared <= 99 * 1024


@pytest.mark.slow
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('channels', [128, 256, 512])
@pytest.mark.parametrize('half, limit', [(HALF, 0), (set(), 16)])
def test_reductions_of_all_widths_fit(own_cache, tmp_path, monkeypatch, channels,
                                      channels_last, half, limit):
    monkeypatch.setattr(sys.modules[__name__], 'HALF', half)
    positions = kernel_module('reduction_attention').ENTRIES // channels
    assert_fit(reduction_functions(channels, positions, channels_last), tmp_path, limit)


@pytest.mark.slow
@pytest.mark.parametrize('dims', [32, 64])
def test_hashing_of_all_widths_fits(own_cache, tmp_path, dims):
    tokens = kernel_module('hash_attention').ENTRIES // dims
    assert_fit(hash_functions(dims, tokens), tmp_path)


def test_kernels_compile_for_a_gpu_and_fit(own_cache, tmp_path):
    assert_fit(kernel_functions(), tmp_path)


def assert_fit(functions, folder, limit=0):
    import triton
    if not triton.__version__.startswith('3.6'):
        pytest.skip('3.9 keeps up to 136 bytes of a thread outside its registers')
    for module, name, constants in functions:
        compiled = compile_for_gpu(module, name, constants)
        assert stack_bytes(compiled.asm['cubin'], folder) <= limit, name
        # 99 KiB is what the smallest GPUs with tensor cores since Ampere have
        assert compiled.metadata.shared <= 99 * 1024, name
