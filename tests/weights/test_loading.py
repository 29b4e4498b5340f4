"""``init_cfg=dict(type='Pretrained', ...)`` of a backbone: all or nothing."""
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn

from mm_efficient.models.soft.backbone import SOFT
from mm_efficient.weights.conversion import CheckpointError, convert_checkpoint


@pytest.fixture(scope='module')
def files(tmp_path_factory, published):
    """Files of one set of weights: published, converted, ..."""
    folder = tmp_path_factory.mktemp('weights')
    conversion = convert_checkpoint(published())
    prefix = 'backbone.'
    contents = {
        'published': dict(state_dict_ema=published()),
        'converted': conversion.checkpoint,
        'backbone': {key[len(prefix):]: value
                     for key, value in conversion.state_dict.items()
                     if key.startswith(prefix)},
        'small': convert_checkpoint(published('soft_small')).checkpoint,
    }
    for name, content in contents.items():
        torch.save(content, folder / f'{name}.pth')
    return folder


@pytest.fixture(scope='module')
def expected(published):
    return convert_checkpoint(published()).state_dict


def initialised(checkpoint, arch='tiny', **options):
    prefix = options.pop('prefix', None)
    cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    if prefix is not None:
        cfg['prefix'] = prefix
    model = SOFT(arch, init_cfg=cfg, **options)
    model.init_weights()
    return model


@pytest.mark.parametrize('options', [
    dict(), dict(prefix='backbone.'), dict(prefix='backbone'),
    dict(out_indices=(0, 1, 2, 3)), dict(out_indices=(0, 2)),
    dict(normalized=True, pretrain_size=224, frozen_stages=2)
])
@pytest.mark.parametrize('scheme, name', [('published://', 'published'),
                                          ('', 'converted')])
def test_with_and_without_prefix(scheme, name, options, files, expected):
    model = initialised(f'{scheme}{files / name}.pth', **options)
    for key, value in model.state_dict().items():
        assert value.equal(expected[f'backbone.{key}']), key


def test_plain_backbone_file(files, expected):
    model = initialised(files / 'backbone.pth')
    assert model.norm.bias.equal(expected['backbone.norm.bias'])


def test_inside_a_segmentor(files, expected):
    pytest.importorskip('mmseg')
    from mmseg.registry import MODELS as SEGMENTORS
    from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    checkpoint = f'published://{files / "published"}.pth'
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = SEGMENTORS.build(dict(
            type='EncoderDecoder',
            backbone=dict(
                type='mmpretrain.SOFT', arch='tiny', out_indices=(0, 1, 2, 3),
                init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
            decode_head=dict(
                type='FCNHead', in_channels=512, in_index=3, channels=8,
                num_classes=2)))
        model.init_weights()
    for key, value in model.backbone.state_dict().items():
        assert value.equal(expected[f'backbone.{key}']), key


def test_whole_classifier(files, expected):
    model = MODELS.build(dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.SOFT', arch='tiny', out_type='cls_token'),
        head=dict(type='mmpretrain.LinearClsHead', in_channels=512,
                  num_classes=1000),
        init_cfg=dict(type='Pretrained',
                      checkpoint=f'published://{files / "published"}.pth')))
    model.init_weights()
    for key, value in model.state_dict().items():
        assert value.equal(expected[key]), key


@pytest.mark.parametrize('name, arch, options, message', [
    # Every tensor of tiny is in small, too: only the left-over blocks tell.
    ('small', 'tiny', dict(), r'unexpected: stages\.1\.blocks\.2'),
    ('converted', 'small', dict(), r'missing: stages\.1\.blocks\.2'),
    ('converted', 'medium', dict(), r'of another shape: .*\(320'),
    ('converted', 'tiny', dict(prefix='backbone.net.'), 'missing: stem'),
    ('published', 'tiny', dict(), r'missing: stem.*published://PATH'),
])
def test_no_partial_loading(name, arch, options, message, files):
    with pytest.raises(CheckpointError, match=message):
        initialised(files / f'{name}.pth', arch, **options)


@pytest.mark.parametrize('name', ['converted', 'backbone'])
def test_published_scheme_takes_our_own_files(name, files, expected):
    model = initialised(f'published://{files / name}.pth')
    assert model.norm.bias.equal(expected['backbone.norm.bias'])


@pytest.fixture
def log(caplog):
    """What MMEngine logs; its logger does not propagate."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('name', ['published', 'converted'])
def test_other_channels_adapt_as_in_timm(channels, name, files, expected, log):
    scheme = 'published://' if name == 'published' else ''
    model = initialised(f'{scheme}{files / name}.pth', in_channels=channels)
    rgb, weight = expected['backbone.stem.0.weight'], model.stem[0].weight
    if channels == 1:  # grey images give what they gave as RGB
        torch.testing.assert_close(weight, rgb.sum(1, keepdim=True))
    else:
        torch.testing.assert_close(weight, rgb[:, [0, 1, 2, 0]] * 3 / 4)
    assert model.norm.bias.equal(expected['backbone.norm.bias'])
    assert log.text.count(
        f'adapted stem.0.weight from 3 to {channels} image channels') == 1


def test_weights_of_as_many_channels_stay(tmp_path):
    source = SOFT('tiny', in_channels=4).state_dict()
    torch.save(source, tmp_path / 'four.pth')
    model = initialised(tmp_path / 'four.pth', in_channels=4)
    assert model.stem[0].weight.equal(source['stem.0.weight'])
    with pytest.raises(CheckpointError, match='1 tensors of another shape'):
        initialised(tmp_path / 'four.pth', in_channels=1)


def test_log_says_how_many_tensors_came_from_where(checkpoints, published, log):
    torch.save(published(), checkpoints / 'SOFT_Tiny.pth.tar')
    model = initialised('published://soft_tiny')
    assert [message for message in log.messages if 'loaded' in message] == [
        f'SOFT: loaded {len(model.state_dict())} tensors from published://soft_tiny '
        '(checkpoints/SOFT_Tiny.pth.tar)']


def test_never_published_starts_from_scratch_and_says_so(checkpoints, log):
    torch.manual_seed(0)
    expected = SOFT('small')
    expected.init_weights()
    torch.manual_seed(0)
    model = initialised('published://soft_small', 'small')
    assert all(value.equal(expected.state_dict()[key])
               for key, value in model.state_dict().items())
    text, = (record.message for record in log.records if record.levelname == 'WARNING')
    for part in ('#' * 80, '# TRAINING STARTS FROM SCRATCH: the authors',
                 '--pretrained work_dirs/soft_small_300e/epoch_300.pth'):
        assert part in text
    assert {len(line) for line in text.strip().split('\n')} == {80}


def test_nothing_is_loaded_from_a_file_that_does_not_fit(files, expected):
    state_dict = torch.load(files / 'backbone.pth')
    del state_dict['norm.bias']
    torch.save(state_dict, files / 'incomplete.pth')
    model = SOFT('tiny', init_cfg=dict(
        type='Pretrained', checkpoint=str(files / 'incomplete.pth')))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match='1 tensors missing: norm.bias'):
        model.init_weights()
    assert all(before[key].equal(value)
               for key, value in model.state_dict().items())


@pytest.mark.parametrize('content, message', [
    (torch.zeros(3), 'expected a dict of tensors, got Tensor'),
    (dict(epoch=3), 'missing: stem'),
    ({'stages.norm.weight': torch.zeros(3)}, 'unexpected: stages.norm.weight'),
])
def test_not_the_weights_of_a_backbone(content, message, tmp_path):
    torch.save(content, tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=message):
        initialised(tmp_path / 'odd.pth')


class DenseSOFT(SOFT):
    DENSE_ONLY = (r'norm0\..*', )

    def __init__(self, **options):
        super().__init__(**options)
        self.norm0 = nn.LayerNorm(64)


def test_parts_for_dense_prediction_may_be_missing(files, expected):
    model = DenseSOFT(arch='tiny', init_cfg=dict(
        type='Pretrained', checkpoint=str(files / 'converted.pth')))
    model.init_weights()
    assert model.norm.bias.equal(expected['backbone.norm.bias'])


def test_other_initialisers_come_first(files, expected):
    model = SOFT('tiny', init_cfg=[
        dict(type='Pretrained', checkpoint=str(files / 'converted.pth')),
        dict(type='Constant', layer='LayerNorm', val=7, bias=7)
    ])
    model.init_weights()
    assert model.norm.bias.equal(expected['backbone.norm.bias'])
