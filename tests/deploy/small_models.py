"""Whole models of our configs, with one block per stage, that detect something."""
import copy
from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mm_efficient.deploy.models import deploy_model
from mm_efficient.deploy.samples import randomize, sample_images
from mm_efficient.models.base import fit_where_needed
from mm_efficient.runs.configs import load_config

CONFIGS = Path(__file__).parents[2] / 'configs'
MADE = {}


def small_model(name, **options):
    """The model of a config, such as ``det/soft_tiny_retinanet_1x``."""
    key = repr((name, options))
    if key not in MADE:  # copying is faster
        model = build_model(name, **options)
        batches = small_images()
        fit_where_needed(model, (batches[0] - 128) / 64)
        raise_scores(model)
        randomize(deploy_model(model), lambda module, x: module.network(x), batches)
        MADE[key] = model
    return copy.deepcopy(MADE[key])


def build_model(name, **options):
    """The model as initialised."""
    cfg = load_config(CONFIGS / f'{name}.py', options, num_classes=7)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        with torch.device('meta'):
            arch = MODELS.build(cfg.model.backbone).arch_settings
        cfg.model.backbone.arch = {**arch, 'depths': [1, 1, 1, 1]}
        torch.manual_seed(0)
        return MODELS.build(cfg.model).eval()


def raise_scores(model):
    """Raise the scores of an untrained detector above the threshold of 0.05."""
    if hasattr(model, 'roi_head'):
        model.rpn_head.rpn_cls.weight.data.normal_(0, 0.1)
        model.roi_head.bbox_head.fc_cls.weight.data.normal_(0, 0.2)
        model.roi_head.bbox_head.fc_reg.weight.data.normal_(0, 0.01)
        if model.with_mask:
            nn.init.normal_(model.roi_head.mask_head.conv_logits.weight, 0, 0.2)
    elif hasattr(model, 'bbox_head'):
        model.bbox_head.retina_cls.weight.data.normal_(0, 0.02)


def small_images():
    """Batches of two shapes."""
    return sample_images([], (96, 128))
