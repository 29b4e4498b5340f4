"""Every operator against mmcv's own C++ and CUDA code, recorded in float64."""
import pytest
import torch
from recorded import CALLS, HALF, run


@pytest.mark.parametrize('name', CALLS)
def test_as_recorded(name, operators):
    tensors = operators[name]
    results = run(name, tensors)
    recorded = {key for key in tensors
                if key.startswith(('output', 'grad_')) and key != 'grad_output'}
    assert set(results) == recorded
    for key in recorded:
        single = results[key].dtype == torch.float32
        torch.testing.assert_close(
            results[key], tensors[key], rtol=0, atol=1e-5 if single else 1e-9,
            msg=lambda text, key=key: f'{key}: {text}')


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('name', sorted(CALLS.keys() - {'masked_conv2d', 'sync_bn'}))
def test_half_precision_computes_in_float32(name, dtype, operators):
    """The result is that of the rounded inputs, rounded once."""
    rounded = {key: tensor.to(dtype).float() if tensor.is_floating_point() else tensor
               for key, tensor in operators[name].items()}
    half, single = run(name, rounded, dtype), run(name, rounded, torch.float32)
    for key, result in half.items():
        if key == 'grad_input' and 'max' in name:
            continue  # mmcv keeps the position of the largest sample in half precision
        assert torch.equal(result, single[key].to(result.dtype)), key
