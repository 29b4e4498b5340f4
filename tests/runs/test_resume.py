"""A resumed training goes on as if it had not been interrupted."""
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.hooks import Hook

from mm_efficient.engine.seeding import (
    SampleIndex,
    SeededSampler,
    SeedSample,
    seed_everything,
)
from mm_efficient.models import LowFormer
from mm_efficient.runs import build_runner, prepare_training

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = dict(
    cls='cls/soft_tiny_300e.py',
    det='det/soft_tiny_maskrcnn_1x.py',
    seg='seg/soft_tiny_fpn_80k.py')


class LossRecorder(Hook):

    def __init__(self):
        self.losses = {}

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses[runner.iter] = float(outputs['loss'])


def train(*args, **options):
    """Losses of a training."""
    runner, losses = run(*args, **options)
    # PyTorch waits 5 s for every worker of a loader collected in a reference cycle
    runner._train_loop = None
    return losses


def run(task, folder, workers, resume=None, name=None, **options):
    """Four iterations in two halves, with a checkpoint after the first."""
    options = {
        **options,
        'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': workers > 0,
        'train_dataloader.batch_size': 2,
        'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'log_level': 'ERROR',
    }
    if task == 'seg':
        options.update({'train_cfg.max_iters': 4,
                        'default_hooks.checkpoint.interval': 2})
    else:
        options.update({'train_cfg.max_epochs': 2,
                        'default_hooks.checkpoint.interval': 1})
    if task == 'det':  # two thirds of a Mask R-CNN's parameters
        options['model.roi_head.bbox_head.fc_out_channels'] = 64
    runner = build_runner(prepare_training(
        CONFIGS / (name or NAMES[task]), work_dir=folder, resume=resume,
        cfg_options=options, mini=True))
    recorder = LossRecorder()
    runner.register_hook(recorder)
    runner.train()
    return runner, recorder.losses


# With workers a loop of epochs and one of iterations
@pytest.mark.parametrize('task, workers', [('cls', 0), ('det', 2), ('seg', 2)])
def test_loss_curve(tiny, shallow, task, workers):
    pytest.importorskip(dict(cls='mmpretrain', det='mmdet', seg='mmseg')[task])
    whole = train(task, tiny / 'whole', workers)
    assert sorted(whole) == [0, 1, 2, 3]
    name = 'iter_2.pth' if task == 'seg' else 'epoch_1.pth'
    rest = train(task, tiny / 'rest', workers, str(tiny / 'whole' / name))
    assert sorted(rest) == [2, 3]
    np.testing.assert_allclose([rest[2], rest[3]], [whole[2], whole[3]],
                               rtol=1e-5)
    # The comparison would be empty if nothing were random or learned.
    assert len({round(loss, 6) for loss in whole.values()}) == 4


@pytest.fixture
def teacher(tmp_path):
    model = timm.create_model('test_resnet', num_classes=5)
    torch.save(model.state_dict(), tmp_path / 'teacher.pth')
    return {'model.teacher.model_name': 'test_resnet',
            'model.teacher.checkpoint': str(tmp_path / 'teacher.pth')}


def ingredients(runner):
    """What takes part in a training: losses, and names of classes."""
    found = {type(hook).__name__ for hook in runner.hooks}
    found |= {key.removeprefix('train/') for key in runner.message_hub.log_scalars}
    found |= {type(runner.optim_wrapper).__name__, type(runner.model).__name__}
    sampler = runner.train_dataloader.batch_sampler
    found |= {type(sampler).__name__, type(sampler.sampler.sampler).__name__}
    return found


@pytest.mark.parametrize('name, expected', [
    ('swiftformer_xs_300e', {'DistilledClassifier', 'AGCOptimWrapper', 'EMAHook',
                             'RepeatAugSampler', 'loss_dist'}),
    ('ecoformer_pvt_b0_30e', {'HashFittingHook', 'RepeatAugSampler'}),
    ('lowformer_e2_300e', {'EMAHook', 'PreciseBNEvalHook', 'DropPathProgressHook',
                           'MESAHook', 'ResolutionBatchSampler', 'loss_mesa'}),
    ('reduceformer_b1_300e', {'EMAHook', 'PreciseBNEvalHook', 'DropPathProgressHook',
                              'ResolutionBatchSampler'})])
def test_recipe_with_everything_it_has(tiny, teacher, monkeypatch, name, expected):
    arch = {**LowFormer.ARCHS['e2'], 'stem_depth': 0, 'depths': [0, 0, 1, 1]}
    monkeypatch.setitem(LowFormer.ARCHS, 'e2', arch)
    options = dict(name=f'cls/{name}.py',
                   **teacher if name.startswith('swiftformer') else {})
    runner, whole = run('cls', tiny / 'whole', 0, **options)
    assert expected <= ingredients(runner)
    assert len({round(loss, 6) for loss in whole.values()}) == 4
    rest = train('cls', tiny / 'rest', 0, str(tiny / 'whole/epoch_1.pth'), **options)
    np.testing.assert_allclose([rest[2], rest[3]], [whole[2], whole[3]], rtol=1e-5)
    ends = [torch.load(tiny / f'{run}/epoch_2.pth', weights_only=False)
            for run in ('whole', 'rest')]
    for key in ('state_dict', 'ema_state_dict', 'averaged_norm_statistics'):
        states = [end.get(key) for end in ends]
        assert ('EMAHook' in expected or key == 'state_dict'
                or states == [None, None])
        if states[0]:
            torch.testing.assert_close(*map(dict, states), rtol=1e-4, atol=1e-6)


def test_samples_follow_from_their_position():
    def sample(entropy):
        results = SeedSample()(dict(sample_idx=SampleIndex(7, entropy)))
        assert type(results['sample_idx']) is int
        assert results['sample_idx'] == 7
        return np.random.rand(), torch.rand(1).item()

    first = sample((0, 0, 3, 5))
    np.random.rand()
    assert sample((0, 0, 3, 5)) == first
    for other in ((1, 0, 3, 5), (0, 1, 3, 5), (0, 0, 4, 5), (0, 0, 3, 6)):
        assert sample(other) != first


def test_samples_do_not_depend_on_the_number_of_processes(monkeypatch):
    def samples(rank, world_size):
        for module in ('mmengine.dataset.sampler', 'mm_efficient.engine.seeding'):
            monkeypatch.setattr(f'{module}.get_dist_info', lambda: (rank, world_size))
        sampler = SeededSampler(range(8), dict(type='DefaultSampler'), seed=1)
        return [(int(index), index.entropy) for index in sampler]

    assert sorted(samples(0, 2) + samples(1, 2)) == sorted(samples(0, 1))


def test_a_plain_index_leaves_the_random_state():
    seed_everything(1)
    SeedSample()(dict(sample_idx=7))
    drawn = np.random.rand()
    seed_everything(1)
    assert np.random.rand() == drawn
