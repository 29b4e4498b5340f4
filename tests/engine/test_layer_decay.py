import copy
import importlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mm_efficient  # noqa: F401

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.mark.parametrize('name', [
    'cls/soft_tiny_300e', 'det/soft_tiny_maskrcnn_1x', 'seg/soft_tiny_fpn_80k'])
def test_earlier_layers_learn_more_slowly(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    pytest.importorskip(cfg.default_scope)
    importlib.import_module(f'{cfg.default_scope}.models')
    with DefaultScope.overwrite_default_scope(cfg.default_scope), \
            torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg.model))
        wrapper = build_optim_wrapper(model, dict(
            constructor='LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1., weight_decay=0.1),
            paramwise_cfg=dict(layer_decay_rate=0.5, flat_decay_mult=0.)))
    groups = {group['param_name']: group for group in wrapper.optimizer.param_groups}
    assert set(groups) == {key for key, _ in model.named_parameters()}
    # the blocks of SOFT-Tiny are 1 + 2 + 3 + 2; with stem and rest ten layers
    for key, layer in (('stem.0.weight', 0), ('stages.0.blocks.0.attn.q.bias', 1),
                       ('stages.2.pos_embed', 4), ('stages.2.downsample.0.weight', 4),
                       ('stages.3.blocks.1.mlp.fc2.weight', 8), ('norm.weight', 9)):
        assert groups[f'backbone.{key}']['lr'] == 0.5**(9 - layer)
    rest = [group for key, group in groups.items() if not key.startswith('backbone.')]
    assert rest and {group['lr'] for group in rest} == {1.}
    for key, parameter in model.named_parameters():
        assert groups[key]['weight_decay'] == (0 if parameter.ndim == 1 else 0.1)


def test_a_backbone_without_depths_is_refused():
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='get_layer_depth, which Linear does not'):
        build_optim_wrapper(model, dict(
            constructor='LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=1.), paramwise_cfg=dict(layer_decay_rate=.5)))
