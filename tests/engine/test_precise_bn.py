import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
from torch import nn

import mm_efficient  # noqa: F401
from mm_efficient.engine.resolution import BatchResolution

STATISTICS = ('norm.running_mean', 'norm.running_var')


@MODELS.register_module()
class NormedModel(BaseModel):
    """Normalises one number per sample, scaled by its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(1)
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs, mode='tensor'):
        out = self.norm(self.drop(torch.stack(inputs).float()) * self.weight)
        if mode == 'loss':
            return dict(loss=(out * self.weight).mean() - self.weight.sum())
        return [dict() for _ in inputs] if mode == 'predict' else out


@DATASETS.register_module()
class Numbers(torch.utils.data.Dataset):
    """The numbers 0 to 15, plus 100 at the training resolution."""

    def __init__(self):
        self.transform = BatchResolution()

    def __len__(self):
        return 16

    def __getitem__(self, index):
        results = self.transform(dict(sample_idx=index))
        shift = 100 if results.get('batch_resolution') == 64 else 0
        return dict(inputs=torch.tensor([float(index + shift)]))


class Evaluations(Hook):
    """Statistics and weight at every evaluation."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def before_val_epoch(self, runner):
        self.seen.append(state(runner.model))

    before_test_epoch = before_val_epoch


class NoMetric:
    dataset_meta = None

    def process(self, **kwargs):
        pass

    def evaluate(self, size):
        return {}


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()
            if key in ('weight', *STATISTICS)}


def make_runner(folder, ema=True, epochs=2, resume=False, load_from=None, **settings):
    hook = dict(type='PreciseBNEvalHook', num_samples=16, batch_size=8, resolution=48,
                **settings)
    ema_hook = dict(type='EMAHook', ema_type='WarmupEMA', momentum=0.3, warmup=1)
    loader = dict(batch_size=4, num_workers=0, dataset=dict(type='Numbers'),
                  sampler=dict(type='DefaultSampler', shuffle=True))
    evaluation = copy.deepcopy(loader)
    loader['batch_sampler'] = dict(type='ResolutionBatchSampler', resolutions=[64])
    return Runner(
        dict(type='NormedModel'), str(folder), train_dataloader=loader,
        val_dataloader=evaluation, test_dataloader=evaluation,
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        val_cfg=dict(), test_cfg=dict(), val_evaluator=[], test_evaluator=[],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='SeedIterationHook'), hook] + [ema_hook] * ema,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        resume=resume, load_from=load_from, randomness=dict(seed=0),
        cfg=Config(dict(train_dataloader=loader)), log_level='ERROR',
        experiment_name=f'{folder.name}{resume}{load_from is None}')


def expected_statistics(weight):
    """Statistics of the numbers 0 to 15 in two batches of 8."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(16, generator=generator)
    batches = order.float().view(2, 8) * weight
    return batches.mean(), batches.var(1).mean()


def run(runner, action='train'):
    recorder = Evaluations()
    runner.register_hook(recorder)
    getattr(runner, action)()
    return recorder.seen


@pytest.mark.parametrize('ema', [True, False])
def test_evaluated_weights_have_their_own_statistics(tmp_path, ema):
    runner = make_runner(tmp_path, ema)
    seen = run(runner)
    assert len(seen) == 2
    for found in seen:
        mean, var = expected_statistics(found['weight'])
        torch.testing.assert_close(found['norm.running_mean'], mean[None])
        torch.testing.assert_close(found['norm.running_var'], var[None])
    # the model keeps those of the training
    assert runner.model.norm.running_mean > 20


@pytest.mark.parametrize('ema', [True, False])
def test_training_does_not_depend_on_it(tmp_path, ema):
    runner = make_runner(tmp_path / 'with', ema)
    run(runner)
    plain = make_runner(tmp_path / 'without', ema)
    plain._hooks = [hook for hook in plain.hooks
                    if type(hook).__name__ != 'PreciseBNEvalHook']
    run(plain)
    torch.testing.assert_close(state(runner.model), state(plain.model))
    if ema:
        averages = [next(h for h in r.hooks if hasattr(h, 'ema_model')).ema_model
                    for r in (runner, plain)]
        torch.testing.assert_close(*(state(a.module) for a in averages))
        assert averages[0].module.norm.running_mean > 20


@pytest.mark.parametrize('ema', [True, False])
def test_checkpoints_have_both(tmp_path, ema):
    whole = make_runner(tmp_path / 'whole', ema)
    seen = run(whole)
    checkpoint = torch.load(tmp_path / 'whole/epoch_1.pth', weights_only=False)
    saved = {key: checkpoint['state_dict'][key] for key in seen[0]}
    torch.testing.assert_close(saved, seen[0])

    rest = make_runner(tmp_path / 'rest', ema, resume=True,
                       load_from=str(tmp_path / 'whole/epoch_1.pth'))
    assert len(run(rest)) == 1
    torch.testing.assert_close(state(rest.model), state(whole.model))
    files = [torch.load(tmp_path / f'{name}/epoch_2.pth', weights_only=False)
             for name in ('whole', 'rest')]
    for key in ('state_dict', 'ema_state_dict', 'averaged_norm_statistics'):
        if ema or key != 'ema_state_dict':
            torch.testing.assert_close(*(dict(file[key]) for file in files))


@pytest.mark.parametrize('weight', [3., float('nan')])
def test_before_a_test_if_asked_to(tmp_path, weight):
    """Statistics that are not finite are not installed."""
    run(make_runner(tmp_path / 'trained', epochs=1))
    path = str(tmp_path / 'trained/epoch_1.pth')
    for asked in (False, True):
        settings = dict(test=asked, load_from=path)
        runner = make_runner(tmp_path / f'{asked}', ema=False, **settings)
        torch.save(dict(state_dict={
            'weight': torch.tensor([weight]), 'norm.weight': torch.ones(1),
            'norm.bias': torch.zeros(1), 'norm.running_mean': torch.tensor([7.]),
            'norm.running_var': torch.tensor([5.])}), path)
        found, = run(runner, 'test')
        asked = asked and weight == 3
        expected = expected_statistics(3.)[0] if asked else torch.tensor(7.)
        torch.testing.assert_close(found['norm.running_mean'], expected[None])
