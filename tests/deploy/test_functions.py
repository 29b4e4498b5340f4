"""Repeated modules are functions of ONNX files."""
import copy

import pytest
import torch
from small_models import small_images
from torch import nn

from mm_efficient.deploy.exporting import export, load_exported
from mm_efficient.deploy.functions import Call, split_functions
from mm_efficient.models import SOFT, EcoFormerTwins


@pytest.mark.parametrize('normalized', [
    True, pytest.param(False, marks=pytest.mark.slow)])
def test_soft_in_onnx_calls_its_blocks_and_inverse(tmp_path, normalized):
    """Of other numbers of heads and landmarks, and in batches of one, too."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    torch.manual_seed(0)
    arch = dict(embed_dims=[64, 32, 32, 32], depths=[2, 1, 1, 1])
    model = SOFT(arch, normalized, pretrain_size=224, out_indices=(0, )).eval()
    images = [(batch - 128) / 64 for batch in small_images()]
    result = export(model, tmp_path / 'a.onnx', images, backbone=True)
    assert all(each.passed for each in result.parity)
    file = onnx.load(tmp_path / 'a.onnx')
    sizes = file.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param for size in sizes] == ['batch', '', 'height', 'width']
    called = [node.op_type for node in file.graph.node if node.domain == 'mm_efficient']
    assert called == ['SOFTBlock_2', 'SOFTBlock_2']
    steps, attention, inverse, block = file.functions
    for caller, function in ((block, attention), (block, inverse), (inverse, steps)):
        assert [node.op_type for node in caller.node].count(function.name) == 1
    assert [node.op_type for node in steps.node] == ['Constant', 'Loop']
    assert result.operators['MatMul'] < 20 < sum(result.operators.values()) < 260
    assert len(file.graph.node) < 40
    run = load_exported(tmp_path / 'a.onnx', 'onnx')
    for shape in ((3, 3, 288, 256), (1, 3, 33, 40)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x)[0], model(x)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('arch', ['tiny', 'huge'])
def test_functions_are_as_many_in_deep_models(arch):
    model = SOFT({**SOFT.ARCHS[arch], 'embed_dims': [32] * 4}, normalized=True).eval()
    functions = split_functions(model)
    assert sorted(function.name.split('_')[0] for function in functions) == [
        'GaussianAttention', 'LandmarkInverse', 'SOFTBlock', 'SOFTBlock', 'SOFTBlock',
        'TransformerBlock']
    for stage in model.stages:  # all blocks are one call while tracing
        call, *others = stage.blocks
        assert isinstance(call, Call)
        assert len(call.called) == len(stage.blocks) == 1 + len(others)
        assert all(isinstance(other, nn.Identity) for other in others)


def test_blocks_with_something_between_are_calls_of_their_own():
    """EcoFormer's position encoding follows the first block."""
    model = EcoFormerTwins('s', attention='softmax').eval()
    model.stages[0].blocks[1] = copy.deepcopy(model.stages[0].blocks[0])
    split_functions(model)
    blocks = model.stages[0].blocks
    assert [len(block.called) for block in blocks] == [1, 1]
    assert blocks[0].name == blocks[1].name


def test_blocks_that_differ_in_more_than_weights_have_their_own_function():
    arch = {**SOFT.ARCHS['tiny'], 'depths': [1, 1, 1, 4]}
    model = SOFT(arch, drop_path_rate=0.3).eval()  # rates differ, too
    model.stages[3].blocks[2].norm1.eps = 1e-5
    split_functions(model)
    first, second, other, last = model.stages[3].blocks
    assert [len(call.called) for call in (first, last)] == [2, 1]
    assert first.name == last.name and isinstance(second, nn.Identity)
    assert not isinstance(other, Call)  # the only one of its kind
