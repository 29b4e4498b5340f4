"""What the runner of a recipe does, without training, for the tests here."""
import copy

import numpy as np
import pytest
import torch
from config_grid import load
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from published import lookup
from timm.scheduler import CosineLRScheduler

IMAGES = 1281167  # of ImageNet-1K's training set
GPUS = 8


@DATASETS.register_module()
class ImageNetOfOneGPU(torch.utils.data.Dataset):
    """As many pictures as one of the GPUs sees in an epoch."""
    metainfo = dict(classes=[str(i) for i in range(1000)])

    def __len__(self):
        return IMAGES // GPUS


class Recipe:
    """Optimizer, schedule and hooks of a config, at any moment of the training.

    Args:
        name (str): The config.
        folder (Path): Where the runner writes its log.
    """

    def __init__(self, name, folder):
        cfg = copy.deepcopy(load(name))
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.update(num_workers=0, persistent_workers=False, pin_memory=False)
            loader.dataset = dict(type='ImageNetOfOneGPU')
        cfg.work_dir = str(folder)
        cfg.experiment_name = f'{name}-{folder.name}'.replace('/', '_')
        cfg.randomness = dict(seed=0)
        self.cfg = cfg
        self.runner = runner = Runner.from_cfg(cfg)
        # as in Runner.train
        self.loop = runner.train_loop
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        runner.param_schedulers = runner.build_param_scheduler(
            runner.param_schedulers)
        self.epoch_length = len(runner.train_dataloader)

    def value(self, key):
        """What the config has at a key of the tables in docs/recipes.md."""
        return lookup(self.cfg, key)

    def lr(self, epoch, iteration=0):
        """Learning rate of an iteration of an epoch, without those before it."""
        for scheduler in self.runner.param_schedulers:
            step = epoch if scheduler.by_epoch else \
                epoch * self.epoch_length + iteration
            scheduler.last_step = scheduler._global_step = step - 1
            scheduler.optimizer._global_step = step
            scheduler.step()
        rates = {group['lr'] for group in self.runner.optim_wrapper.param_groups}
        assert len(rates) == 1
        return rates.pop()

    def decay(self):
        """Weight decay of every parameter that is trained, by its name."""
        names = {id(p): key for key, p in self.runner.model.named_parameters()}
        return {names[id(p)]: group['weight_decay']
                for group in self.runner.optim_wrapper.optimizer.param_groups
                for p in group['params']}

    def hook(self, kind):
        """The hook of this type."""
        found, = (hook for hook in self.runner.hooks
                  if type(hook).__name__ == kind)
        return found

    def at(self, progress):
        """Move to a share of the training, for hooks that look at the runner."""
        self.loop._iter = round(progress * self.loop.max_iters)
        return self.runner

    def rates(self, progress):
        """Rate of every drop path at a share of the training, by its name."""
        hook = self.hook('DropPathProgressHook')
        hook.before_train_iter(self.at(progress), 0)
        return {name: module.drop_prob
                for name, module in self.runner.model.named_modules()
                if type(module).__name__ == 'DropPath'}


def check_timm_schedule(run, epochs):
    """Learning rates are those of a training script with timm's schedule."""
    schedule = run.value('param_scheduler.WarmupCosineLR')
    lr = run.value('optim_wrapper.optimizer.lr')
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=schedule.T_max, lr_min=schedule.eta_min,
        warmup_t=schedule.warmup, warmup_lr_init=schedule.warmup_lr_init, cycle_limit=1)
    batch = GPUS * run.value('train_dataloader.batch_size')
    assert run.epoch_length == IMAGES // batch
    assert run.loop.max_epochs == schedule.T_max
    for epoch in (*epochs, schedule.T_max - 1):
        scheduler.step(epoch)
        assert run.lr(epoch) == pytest.approx(optimizer.param_groups[0]['lr'])


def check_adamw(run, exempt):
    """AdamW decays all parameters but the exempt ones: takes name and parameter."""
    wrapper = run.runner.optim_wrapper
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.defaults['betas'] == run.value('optim_wrapper.optimizer.betas')
    weight_decay = run.value('optim_wrapper.optimizer.weight_decay')
    assert weight_decay > 0
    assert run.decay() == {
        key: 0 if exempt(key, parameter) else weight_decay
        for key, parameter in run.runner.model.named_parameters()}


def transforms(name, part='train'):
    """Transforms of a pipeline, built, by their type."""
    config = load(name)
    init_default_scope('mmpretrain')
    pipeline = config[f'{part}_dataloader'].dataset.pipeline
    return {item['type']: TRANSFORMS.build(copy.deepcopy(item)) for item in pipeline}


def evaluated(name):
    """Short side a picture is resized to, crop of it that is evaluated, in pixels."""
    steps = transforms(name, 'test')
    image = np.zeros((300, 400, 3), np.uint8)
    resized = steps['ResizeEdge'](dict(img=image))
    side = min(resized['img'].shape[:2])
    crop = steps['CenterCrop'](resized)['img'].shape[:2]
    assert steps['ResizeEdge'].interpolation == 'bicubic' and crop[0] == crop[1]
    return side, crop[0]


def check_rand_augment(transform):
    """RandAugment is timm's ``rand-n?-m?-mstd?-inc1``."""
    assert transform.total_level == 10
    kinds = [type(t).__name__ for t in transform.transforms]
    assert len(kinds) == 15 and len(set(kinds)) == 13
    assert all(t.prob == 0.5 for t in transform.transforms)
    assert {t.magnitude_range for t in transform.transforms
            if type(t).__name__ == 'Translate'} == {(0, 0.45)}


def check_mixing(run):
    """Mixup and CutMix of a classifier are equally likely, and as in its config."""
    mixing = run.runner.model.data_preprocessor.batch_augments
    assert mixing.probs is None
    assert {type(augment).__name__: augment.alpha for augment in mixing.augments} == {
        kind: run.value(f'model.train_cfg.augments.{kind}.alpha')
        for kind in ('Mixup', 'CutMix')}


def soft_cross_entropy(logits, scores, smoothing=0.1):
    """Cross entropy against smoothed scores, written out."""
    target = scores * (1 - smoothing) + smoothing / logits.shape[1]
    return -(target * logits.log_softmax(1)).sum(1).mean()


def samples(num_classes=1000):
    """Two samples with mixed labels, and their scores."""
    scores = torch.zeros(2, num_classes)
    scores[0, 3], scores[0, 7], scores[1, 5] = 0.7, 0.3, 1.
    return [DataSample().set_gt_score(score) for score in scores], scores
