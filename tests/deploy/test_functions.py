"""Repeated modules are functions of ONNX files."""
import pytest
import torch
from mmpretrain.registry import MODELS
from small_models import small_images

from mm_efficient.deploy.exporting import export, load_exported
from mm_efficient.deploy.functions import Call, split_functions
from mm_efficient.models import SOFT, LowFormer, SwiftFormer


def calls(model):
    return {name: module.name for name, module in model.named_modules()
            if isinstance(module, Call)}


def test_soft_in_onnx_calls_its_blocks_and_inverse(tmp_path):
    """Of other numbers of heads and landmarks, and in batches of one, too."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    torch.manual_seed(0)
    arch = dict(embed_dims=[64, 32, 32, 32], depths=[2, 1, 1, 1])
    model = SOFT(arch, normalized=True, pretrain_size=224, out_indices=(0, )).eval()
    images = [(batch - 128) / 64 for batch in small_images()]
    result = export(model, tmp_path / 'a.onnx', images, backbone=True)
    assert all(each.passed for each in result.parity)
    file = onnx.load(tmp_path / 'a.onnx')
    called = [node.op_type for node in file.graph.node if node.domain == 'mm_efficient']
    assert called == ['SOFTBlock_1', 'SOFTBlock_1']
    (inverse, block) = file.functions
    assert [inverse.name, block.name] == ['LandmarkInverse_0', 'SOFTBlock_1']
    assert [node.op_type for node in block.node].count('LandmarkInverse_0') == 1
    assert len(file.graph.node) < 40
    run = load_exported(tmp_path / 'a.onnx', 'onnx')
    for shape in ((3, 3, 288, 256), (1, 3, 33, 40)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x)[0], model(x)[0], rtol=1e-3, atol=1e-4)


