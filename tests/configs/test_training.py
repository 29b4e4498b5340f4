"""One config per method initialised, trained and evaluated for real, in miniature."""
import copy
import re

import pytest
import torch
from config_grid import EXAMPLE_OF, EXAMPLES, LEAVES, build_model, load
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import save_checkpoint

from mm_efficient.datasets import mini

DENSE = [name for name in EXAMPLES if LEAVES[name].task != 'cls']


def dense(variant, task):
    """Both methods of a variant in a task."""
    return [name for name in DENSE if LEAVES[name][:3] == (variant, '', task)]


# Classifiers, of one resolution each, and a detector or a segmentor per backbone class,
# of the four methods in turn: heads are the same for all, and test_configs.py builds
# every model
TRAINED = [name for name in EXAMPLES
           if LEAVES[name].task == 'cls' and not re.search(r'_r\d+_', name)]
TRAINED += [dense(variant, ('det', 'seg')[i % 2])[i // 2 % 2]
            for i, variant in enumerate(EXAMPLE_OF.values())]


@pytest.mark.parametrize('name', [
    dense(variant, 'det')[0] for variant in EXAMPLE_OF.values()])
def test_classifier_checkpoint_initialises_dense_model(name, tmp_path):
    leaf = LEAVES[name]
    torch.manual_seed(0)
    classifier = build_model(next(
        n for n in EXAMPLES if n.startswith(f'cls/{leaf.variant}_')
        and not LEAVES[n].extra))
    for tensor in classifier.backbone.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.0)
    path = str(tmp_path / 'classifier.pth')
    save_checkpoint(dict(state_dict=classifier.state_dict()), path)

    config = copy.deepcopy(load(name).model)
    config.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=path, prefix='backbone.')
    with DefaultScope.overwrite_default_scope(load(name).default_scope):
        model = MODELS.build(config)
        model.init_weights()
    wanted = classifier.backbone.state_dict()
    loaded = model.backbone.state_dict()
    patterns = type(model.backbone).DENSE_ONLY
    for key, tensor in loaded.items():
        if not any(re.fullmatch(pattern, key) for pattern in patterns):
            assert torch.equal(tensor, wanted[key]), key


@pytest.fixture(scope='module')
def miniature(tmp_path_factory):
    root = tmp_path_factory.mktemp('mini')
    for name, images in (('coco', 2), ('ade', 2), ('imagenet', 5)):
        mini.generate_dataset(name, root=str(root), num_train=images, num_val=images)
    return root


def shrink(config, root, task):
    """One block per stage, miniature data sets, small images, two iterations."""
    with torch.device('meta'), DefaultScope.overwrite_default_scope('mmpretrain'):
        arch = MODELS.build(config.model.backbone).arch_settings
    config.model.backbone.arch = {**arch, 'depths': [1, 1, 1, 1]}
    folder = dict(cls='imagenet', det='coco', seg='ade')[task]
    config.train_dataloader.batch_size = 2
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root / folder)
        if task != 'seg':  # its labels are numbers below 150
            loader.dataset.metainfo = dict(classes=mini.CLASSES[folder])
    if task == 'det':
        config.val_evaluator.ann_file = str(
            root / folder / config.val_dataloader.dataset.ann_file)
        heads = config.model.get('roi_head', config.model)
        for head in {'bbox_head', 'mask_head'} & set(heads):
            heads[head].num_classes = len(mini.CLASSES[folder])
        if 'roi_head' in config.model:
            heads.bbox_head.fc_out_channels = 64
        # An untrained model is never sure, and no detection means no metric.
        test_cfg = config.model.test_cfg
        test_cfg.get('rcnn', test_cfg).update(score_thr=0.0, max_per_img=10)
    for pipeline in (config.train_dataloader.dataset.pipeline,
                     config.val_dataloader.dataset.pipeline):
        for transform in pipeline:
            if transform.type in ('Resize', 'RandomResize'):
                transform.scale = (192, 96)
            elif transform.type == 'RandomCrop':
                transform.crop_size = (64, 64)
    for hook in config.get('custom_hooks', []):
        if hook.type == 'HashFittingHook':
            hook.update(num_images=2, max_tokens=32)
    if 'teacher' in config.model:
        config.model.teacher = None
    config.model.backbone.pop('init_cfg', None)  # published weights
    if task == 'seg':
        config.model.data_preprocessor.size = (64, 64)
        if 'upernet' in config.filename:
            config.model.decode_head.channels = 64
        config.train_cfg.update(max_iters=2, val_interval=2)
    else:
        config.train_cfg.max_epochs = 1


@pytest.mark.parametrize('name', TRAINED)
def test_config_trains_and_evaluates(name, miniature, tmp_path):
    leaf, config = LEAVES[name], copy.deepcopy(load(name))
    shrink(config, miniature, leaf.task)
    config.work_dir = str(tmp_path)
    config.experiment_name = name.replace('/', '_')
    config.randomness = dict(seed=0)
    runner = Runner.from_cfg(config)
    parameters = dict(runner.model.named_parameters())
    before = {key: p.detach().clone() for key, p in parameters.items()}
    used = set()
    for key, parameter in parameters.items():
        parameter.register_post_accumulate_grad_hook(
            lambda _, key=key: used.add(key))
    runner.train()

    assert used == set(parameters)  # distributed training allows no unused ones
    history = runner.message_hub.log_scalars
    assert torch.isfinite(torch.tensor(history['train/loss'].data[0])).all()
    assert any(not torch.equal(before[key], p) for key, p in parameters.items())
    metric = dict(cls='accuracy/top1', det='coco/bbox_mAP', seg='mIoU')[leaf.task]
    assert f'val/{metric}' in history
