"""OpenMMLab's own tools with our models, as docs/hosts.md says."""
import ast
import importlib
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.apis import FeatureExtractor
from mmpretrain.registry import MODELS

from mm_efficient.__main__ import main
from mm_efficient.files import configs_folder
from mm_efficient.runs.configs import load_config

CONFIGS = configs_folder()
PAGE = Path(__file__).parents[1] / 'docs/hosts.md'
# Modules that import mmcv.ops, and those below them
NEED_OPERATORS = ('mmdet.apis', 'mmdet.datasets', 'mmdet.engine', 'mmdet.evaluation',
                  'mmdet.models', 'mmdet.structures.bbox', 'mmdet.visualization',
                  'mmseg.apis', 'mmseg.models', 'mmseg.utils')
CLASSIFIERS = dict(SOFT='soft_tiny_300e', EcoFormer='ecoformer_pvt_b0_30e',
                   SwiftFormer='swiftformer_xs_300e', LowFormer='lowformer_b0_300e',
                   ReduceFormer='reduceformer_b1_300e')


def tools(package):
    folder = Path(importlib.import_module(package).__file__).parent / '.mim/tools'
    if not folder.is_dir():
        pytest.skip(f'this {package} has no tools')
    return folder


def classifier(family):
    """Untrained; EcoFormer's hash functions are set to anything."""
    cfg = load_config(CONFIGS / f'cls/{CLASSIFIERS[family]}.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
    if family == 'EcoFormer':
        model.backbone.fitted.fill_(True)
    return cfg, model


def test_detectors_and_segmentors_have_names():
    apis = pytest.importorskip('mmdet.apis')
    detector = apis.DetInferencer('lowformer_b0_retinanet_1x', device='cpu',
                                  show_progress=False).model
    assert type(detector.backbone).__name__ == 'LowFormer'
    assert len(detector.dataset_meta['classes']) == 80
    apis = pytest.importorskip('mmseg.apis')
    segmentor = apis.MMSegInferencer.__new__(apis.MMSegInferencer)
    segmentor.scope = 'mmseg'
    for name in ('lowformer_b0_fpn_80k', 'lowformer-b0_fpn_8xb4-80k_ade20k-512x512'):
        cfg, weights = segmentor._load_model_from_metafile(name)
        assert cfg.model.backbone.type.endswith('LowFormer') and weights is None
    with pytest.raises(ValueError, match='Cannot find model: lowformer_b0_retinanet'):
        segmentor._load_model_from_metafile('lowformer_b0_retinanet_1x')


@pytest.mark.parametrize('family', CLASSIFIERS)
def test_vectors_of_images(family):
    cfg, model = classifier(family)
    model._config, model.dataset_meta = cfg, {}
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    vector, = FeatureExtractor(model, device='cpu')(image, stage='pre_logits')
    assert vector.shape == (model.head.fc.in_features, )


@pytest.mark.parametrize('family', CLASSIFIERS)
def test_layers_for_class_activation_maps(family):
    option = re.search(rf'^\| {family} \| `--target-layers ([\w.]+)`', PAGE.read_text(),
                       re.M)[1]
    _, model = classifier(family)
    torch.nn.init.normal_(model.head.fc.weight)
    outputs = []

    def hook(module, inputs, output):
        output.retain_grad()
        outputs.append(output)

    model.get_submodule(option).register_forward_hook(hook)
    model(torch.rand(1, 3, 64, 96))[0].max().backward()
    output, = outputs
    stage = int(option[-1])
    assert output.shape == (1, model.backbone.feature_channels[stage],
                            16 // 2**stage, 24 // 2**stage)
    assert output.grad.abs().sum(1).min() > 0  # every position counts


@pytest.mark.parametrize('family', CLASSIFIERS)
def test_schedules_are_plotted(family, tmp_path, monkeypatch):
    tool = tools('mmpretrain') / 'visualization/vis_scheduler.py'
    cfg = load_config(CONFIGS / f'cls/{CLASSIFIERS[family]}.py')
    size = str(2 * cfg.train_dataloader.batch_size)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', [
        str(tool), str(CONFIGS / f'cls/{CLASSIFIERS[family]}.py'), '--dataset-size',
        size, '--not-show', '--cfg-options', 'train_cfg.max_epochs=2'])
    plotted = []
    monkeypatch.setattr('matplotlib.axes.Axes.plot',
                        lambda self, values, **options: plotted.append(values))
    runpy.run_path(str(tool), run_name='__main__')
    assert len(plotted[0]) == 4 and all(np.isfinite(plotted[0]))


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_tools_that_import_operators_are_listed(package):
    pytest.importorskip(package)
    row = re.search(rf'^\| {dict(mmdet="MMDet", mmseg="MMSeg")[package]}.*',
                    PAGE.read_text(), re.M)[0]
    for path in tools(package).rglob('*.py'):
        imported = [node.module for node in ast.parse(path.read_text()).body
                    if isinstance(node, ast.ImportFrom)]
        if any(name == module or name.startswith(f'{module}.')
               for name in imported for module in NEED_OPERATORS):
            assert f'`{path.name}`' in row, path


def test_scripts_run_after_the_import(tmp_path, monkeypatch, capsys):
    tool = tmp_path / 'tool.py'
    tool.write_text('import sys, beside\n'
                    'print(__name__, sys.argv[1:], "mmcv._ext" in beside.found)')
    (tmp_path / 'beside.py').write_text('import mmcv.ops, sys\nfound = sys.modules')
    monkeypatch.setattr('sys.path', ['', *sys.path[1:]])
    monkeypatch.setattr('sys.argv', ['mm_efficient', str(tool), '--option'])
    main()
    assert capsys.readouterr().out.splitlines()[-1] == "__main__ ['--option'] True"
    monkeypatch.setattr('sys.argv', ['mm_efficient', 'none.py'])
    with pytest.raises(SystemExit, match="error: expected a Python file .*'none.py'"):
        main()
