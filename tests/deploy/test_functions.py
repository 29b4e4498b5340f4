"""Repeated modules are functions of ONNX files."""
import pytest
import torch
from small_models import small_images

from mm_efficient.deploy.exporting import export, load_exported
from mm_efficient.deploy.functions import Call, split_functions
from mm_efficient.models import SOFT


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
    assert called == ['SOFTBlock_1', 'SOFTBlock_1']
    steps, inverse, block = file.functions
    assert [inverse.name, block.name] == ['LandmarkInverse_0', 'SOFTBlock_1']
    assert [node.op_type for node in inverse.node].count(steps.name) == 1
    assert [node.op_type for node in steps.node] == ['Constant', 'Loop']
    assert [node.op_type for node in block.node].count('LandmarkInverse_0') == 1
    assert len(file.graph.node) < 40
    run = load_exported(tmp_path / 'a.onnx', 'onnx')
    for shape in ((3, 3, 288, 256), (1, 3, 33, 40)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x)[0], model(x)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('arch', ['tiny', 'huge'])
def test_functions_are_as_many_in_deep_models(arch):
    model = SOFT({**SOFT.ARCHS[arch], 'embed_dims': [32] * 4}, normalized=True).eval()
    num_blocks = sum(len(stage.blocks) for stage in model.stages)
    functions = split_functions(model)
    assert sorted(function.name.split('_')[0] for function in functions) == [
        'LandmarkInverse', 'SOFTBlock', 'SOFTBlock', 'SOFTBlock', 'TransformerBlock']
    calls = [module for module in model.modules() if isinstance(module, Call)]
    num_soft = num_blocks - len(model.stages[3].blocks)
    assert len(calls) == num_blocks + num_soft  # each with its inverse


def test_blocks_that_differ_in_more_than_weights_have_their_own_function():
    arch = {**SOFT.ARCHS['tiny'], 'depths': [1, 1, 1, 4]}
    model = SOFT(arch, drop_path_rate=0.3).eval()  # rates differ, too
    model.stages[3].blocks[2].norm1.eps = 1e-5
    split_functions(model)
    names = [block.name for block in model.stages[3].blocks if isinstance(block, Call)]
    assert len(names) == 3 and len(set(names)) == 1
    assert not isinstance(model.stages[3].blocks[2], Call)  # the only one of its kind
