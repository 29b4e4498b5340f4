"""Hash functions are fitted once and stay as they are.

By one process of several: test_distributed.py.
"""
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mm_efficient.engine.hash_fitting import HashFittingHook
from mm_efficient.models.ecoformer.backbone import EcoFormer, EcoFormerPVT

ARCH = dict(embed_dims=[16, 16, 32, 32], num_heads=[1, 2, 2, 2], depths=[1, 2, 1, 1],
            mlp_ratios=[2, 2, 2, 2])


class Model(BaseModel):
    """The mean of a feature map as the loss."""

    def __init__(self, attention='hash'):
        super().__init__(dict(type='ImgDataPreprocessor'))
        self.backbone = EcoFormerPVT(ARCH, attention)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out, = self.backbone(inputs)
        weight = torch.linspace(-1, 1, out.shape[1])[:, None, None]
        return dict(loss=(out * weight).mean())


def make_runner(folder, model, epochs=1, hooks=None, **options):
    generator = torch.Generator().manual_seed(0)
    # Of two sizes, one image at a time as detectors see them
    images = [torch.randn(3, 96, width, generator=generator)
              for width in (96, 96, 128, 128)]
    if hooks is None:
        hooks = [dict(type='HashFittingHook', num_images=3, max_tokens=40)]
    return Runner(
        model, str(folder),
        train_dataloader=dict(
            dataset=[dict(inputs=image) for image in images], batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=hooks, randomness=dict(seed=0), default_scope='mmengine',
        experiment_name=Path(folder).name, **options)


@pytest.fixture(autouse=True)
def own_scope():
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


@pytest.fixture
def fits(monkeypatch):
    """Images of every call of ``fit``."""
    calls, fit = [], EcoFormer.fit

    def record(self, images, *args):
        calls.append([tuple(x.shape) for x in images])
        return fit(self, images, *args)

    monkeypatch.setattr(EcoFormer, 'fit', record)
    return calls


def hash_buffers(model):
    return {key: value.clone() for key, value in model.named_buffers()}


def assert_same(buffers, others):
    assert len(buffers) == 3 * 4 + 1 and buffers.keys() == others.keys()
    for key, value in buffers.items():
        assert torch.equal(value, others[key]), key


def test_fitted_before_the_first_iteration(tmp_path, fits):
    torch.manual_seed(0)
    model = Model()
    with pytest.raises(RuntimeError, match='HashFittingHook'):
        make_runner(tmp_path / 'without', model, hooks=[]).train()
    make_runner(tmp_path / 'with', model).train()
    assert model.backbone.is_fitted
    shapes, = fits
    assert len(shapes) == 3 and all(s[:3] == (1, 3, 96) for s in shapes)
    log, = (tmp_path / 'with').glob('*/*.log')
    assert 'functions of 4 attention layers to 3 training images, at most 40' in \
        log.read_text()


def test_average_has_the_same_hash_functions(tmp_path):
    torch.manual_seed(0)
    runner = make_runner(tmp_path, Model(), epochs=2, hooks=[
        dict(type='EMAHook', momentum=0.3, update_buffers=True),
        dict(type='HashFittingHook', max_tokens=40)])
    runner.train()
    hook, = (h for h in runner.hooks if isinstance(h, EMAHook))
    average = hook.ema_model.module
    assert_same(hash_buffers(average), hash_buffers(runner.model))
    assert any(not torch.equal(p, q) for p, q in zip(
        average.parameters(), runner.model.parameters()))
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    for weights, prefix in ((checkpoint['state_dict'], ''),
                            (checkpoint['ema_state_dict'], 'module.')):
        assert weights[f'{prefix}backbone.fitted']
        assert_same({key: weights[prefix + key] for key in hash_buffers(average)},
                    hash_buffers(runner.model))


def test_resumed_and_fitted_models_are_not_fitted_again(tmp_path, fits):
    torch.manual_seed(0)
    first = make_runner(tmp_path / 'run', Model())
    first.train()
    resumed = make_runner(tmp_path / 'run', Model(), epochs=2, resume=True)
    resumed.train()
    assert resumed.iter == 8
    finetuned = make_runner(tmp_path / 'other', Model(),
                            load_from=str(tmp_path / 'run' / 'epoch_1.pth'))
    finetuned.train()
    assert len(fits) == 1
    for runner in (resumed, finetuned):
        assert_same(hash_buffers(runner.model), hash_buffers(first.model))


def test_softmax_training_goes_on_with_hashing(tmp_path, fits):
    torch.manual_seed(0)
    softmax = make_runner(tmp_path / 'softmax', Model('softmax'))
    softmax.train()
    assert not fits
    runner = make_runner(tmp_path / 'hash', Model(),
                         load_from=str(tmp_path / 'softmax' / 'epoch_1.pth'))
    runner.load_or_resume()
    trained = softmax.model.backbone.stages[0].blocks[0].attn.qkv.weight
    ours = runner.model.backbone.stages[0].blocks[0].attn.qk.weight
    assert torch.equal(ours, trained[:16])
    runner.train()
    assert len(fits) == 1 and runner.model.backbone.is_fitted


def test_wrong_numbers_are_explained():
    for wrong in (dict(num_images=0), dict(max_tokens=0)):
        with pytest.raises(ValueError, match='must be at least 1'):
            HashFittingHook(**wrong)
