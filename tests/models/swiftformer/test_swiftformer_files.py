"""SwiftFormer's published files, and the other layouts of its weights."""
import pytest
import torch

from mm_efficient.models.swiftformer.backbone import SwiftFormer
from mm_efficient.weights.conversion import CheckpointError, convert_checkpoint

VARIANT = 'swiftformer_xs'
BLOCK = 'network.0.2'


def test_the_weights_are_preferred_to_their_average(published):
    raw, averaged = published(VARIANT, seed=0), published(VARIANT, seed=1)
    conversion = convert_checkpoint(dict(model=raw, model_ema=averaged))
    assert conversion.meta['mm_efficient']['entry'] == 'model'
    assert conversion.state_dict['head.fc_dist.bias'].equal(raw['dist_head.bias'])


def test_every_value_arrives_once(published):
    tensors = published(VARIANT)
    converted = convert_checkpoint(tensors).state_dict
    ours, theirs = (
        torch.cat([t.double().flatten() for t in state_dict.values()])
        for state_dict in (converted, tensors))
    assert ours.numel() == theirs.numel()
    for power in (1, 2):
        assert ours.pow(power).sum().item() == pytest.approx(
            theirs.pow(power).sum().item())
    ours = converted['backbone.stages.0.blocks.2.attn.qk.weight'][..., 0, 0]
    query, key = ours.split(48)
    assert query.equal(tensors[f'{BLOCK}.attn.to_query.weight'])
    assert key.equal(tensors[f'{BLOCK}.attn.to_key.weight'])


def test_the_layout_of_transformers_is_refused(published):
    tensors = {f'swiftformer.encoder.{key.replace(".0.2.", ".0.blocks.2.")}': value
               for key, value in published(VARIANT).items() if BLOCK in key}
    with pytest.raises(CheckpointError, match='different operator.*dist_in1k'):
        convert_checkpoint(tensors)


@pytest.mark.parametrize('key, message', [
    ('dist_head.weight', '1 missing: dist_head.weight'),
    (f'{BLOCK}.attn.w_g', f'1 missing: {BLOCK}.attn.w_g'),
    ('network.4.5.layer_scale_1', '1 missing: network.4.5.layer_scale_1'),
])
def test_missing_tensors_are_named_as_published(key, message, published):
    tensors = published(VARIANT)
    del tensors[key]
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(tensors)


def test_depths_of_no_variant(published):
    tensors = {key: value for key, value in published(VARIANT).items()
               if not key.startswith('network.6.3.')}
    with pytest.raises(CheckpointError,
                       match=r'blocks per stage \(3, 3, 6, 3\);.*l3 \(4, 4'):
        convert_checkpoint(tensors)


def test_another_number_of_classes(published):
    tensors = published(VARIANT)
    for head in ('head', 'dist_head'):
        for leaf in ('weight', 'bias'):
            tensors[f'{head}.{leaf}'] = tensors[f'{head}.{leaf}'][:10]
    assert 'num_classes=10' in convert_checkpoint(tensors).report


def test_output_norms_start_as_the_identity(published, tmp_path):
    torch.save(dict(model=published(VARIANT)), tmp_path / 'weights.pth')
    model = SwiftFormer('xs', out_indices=(1, 3), output_norm=True, init_cfg=dict(
        type='Pretrained', checkpoint=f'published://{tmp_path}/weights.pth'))
    model.init_weights()
    expected = published(VARIANT)['patch_embed.0.weight']
    assert model.stem[0].weight.equal(expected)
    for norm in model.output_norms.values():
        assert (norm.weight == 1).all() and not norm.bias.any()
        assert (norm.running_var == 1).all() and not norm.running_mean.any()
