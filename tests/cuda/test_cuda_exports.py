"""Exported files on a GPU: made on the CPU, and made from a model on the GPU."""
import pytest
import torch
from small_models import small_images, small_model

from mm_efficient.deploy.exporting import export
from mm_efficient.deploy.samples import sample_images
from mm_efficient.deploy.verification import measure_parity, predict

pytestmark = [pytest.mark.cuda, pytest.mark.part1]

NAMES = ['cls/soft_tiny_300e', 'cls/ecoformer_pvt_b0_30e',
         'det/lowformer_b0_retinanet_1x', 'seg/swiftformer_xs_fpn_40k',
         'cls/reduceformer_b1_300e']


def assert_parity(run, model, batches=None):
    for images in batches or small_images():
        result = measure_parity(
            lambda x: [y.cpu() for y in run(x.cuda())], images, predict(model, images))
        assert result.passed, str(result)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('made_on', ['cpu', 'cuda'])
def test_torchscript_file_on_cuda(name, made_on, device, tmp_path):
    model, path = small_model(name), tmp_path / 'model.pt'
    export(model.to(made_on), path, small_images(), format='torchscript')
    module = torch.jit.load(str(path), map_location=device)
    with torch.no_grad():
        assert_parity(module, model.cpu())


@pytest.mark.parametrize('name', NAMES[:3])
def test_torch_export_file_on_cuda(name, device, tmp_path):
    from torch.export.passes import move_to_device_pass
    model, path = small_model(name), tmp_path / 'model.pt2'
    # Feature maps of RetinaNet that are 1 wide are special to torch.export, and of
    # larger images rounding chooses among boxes of equal scores
    batches = sample_images([], (176, 176))
    export(model, path, batches, format='torch-export')
    program = move_to_device_pass(torch.export.load(path), 'cuda')
    with torch.no_grad():
        assert_parity(program.module(), model, batches)


@pytest.mark.parametrize('name', NAMES[:3])
def test_onnxruntime_cuda(name, device, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
        pytest.skip('ONNX Runtime has no CUDAExecutionProvider: onnxruntime-gpu')
    model, path = small_model(name), tmp_path / 'model.onnx'
    export(model, path, small_images())
    session = onnxruntime.InferenceSession(path, providers=['CUDAExecutionProvider'])
    assert_parity(lambda x: map(torch.from_numpy, session.run(
        None, {'input': x.cpu().numpy()})), model)
