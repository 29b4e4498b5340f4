"""Names of weights: a file in checkpoints/, an address, a page, or nothing at all."""
import pytest

from mm_efficient.weights import FAMILIES, CheckpointError
from mm_efficient.weights.locating import NeverPublishedError, locate

RELEASE = 'https://github.com/ziplab/EcoFormer/releases/download/v1.0/'
ADDRESSES = {
    **{f'ecoformer_pvt_b{i}': f'{RELEASE}pvtv2_b{i}_ecoformer.pth' for i in range(5)},
    'ecoformer_twins_s': f'{RELEASE}twins_svt_s_ecoformer.pth',
    **{f'swiftformer_{arch}': f'timm/swiftformer_{arch}.dist_in1k'
       for arch in ('xs', 's', 'l1', 'l3')},
    **{f'lowformer_{arch}': f'timm/lowformer_{arch}.in1k'
       for arch in ('b0', 'b1', 'b15', 'b3', 'e1', 'e2', 'e3')}
}
BY_HAND = {
    'soft_tiny': 'SOFT_Tiny', 'soft_tiny_norm': 'SOFT_Tiny_norm',
    'soft_small_norm': 'SOFT_Small_norm', 'soft_medium_norm': 'SOFT_Medium_norm',
    'soft_large_norm': 'SOFT_Large_norm'
}
NEVER = {
    'soft_small', 'soft_medium', 'soft_large', 'soft_huge', 'soft_huge_norm',
    'lowformer_b2', 'reduceformer_b1', 'reduceformer_b2', 'reduceformer_b3'
}


def test_every_variant_is_listed_here():
    assert {variant for family in FAMILIES for variant in family.variants} == (
        {*ADDRESSES, *BY_HAND} | NEVER)


@pytest.mark.parametrize('variant, address', ADDRESSES.items())
def test_address(variant, address):
    assert locate(variant) == address


@pytest.mark.parametrize('variant, name', BY_HAND.items())
def test_by_hand(checkpoints, variant, name):
    with pytest.raises(CheckpointError) as error:
        locate(variant)
    for part in (f'get {name} from https://github.com/fudan-zvg/SOFT',
                 f'save it as {checkpoints / variant}.pth'):
        assert part in str(error.value)


@pytest.mark.parametrize('variant', sorted(NEVER))
def test_never_published(variant):
    with pytest.raises(NeverPublishedError, match='published no weights') as error:
        locate(variant)
    assert f'--pretrained work_dirs/{variant}_300e/epoch_300.pth' in str(error.value)


@pytest.mark.parametrize('variant, names', [
    ('swiftformer_xs', ['swiftformer_xs.pth', 'SwiftFormer_XS.pt',
                        'SwiftFormer_XS_ckpt.pth', 'swiftformer_xs.safetensors']),
    ('ecoformer_twins_s', ['ecoformer_twins_s.pth', 'twins_svt_s_ecoformer.pth']),
    ('soft_tiny_norm', ['SOFT_Tiny_norm.pth.tar', 'SOFT_Norm_tiny.pth']),
    ('soft_huge', ['soft_huge.pth']),
    ('lowformer_b2', ['lowformer_b2.pth'])
])
def test_file_in_the_folder(checkpoints, monkeypatch, variant, names):
    for name in names:
        file = checkpoints / name
        file.touch()
        assert locate(variant) == f'checkpoints/{name}'
        file.unlink()
        (checkpoints / f'other_{name}').touch()
    elsewhere = checkpoints / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / names[0]).touch()
    monkeypatch.setenv('MM_EFFICIENT_CHECKPOINTS', str(elsewhere))
    assert locate(variant) == str(elsewhere / names[0])


def test_own_name_comes_before_the_authors(checkpoints):
    for name in ('pvtv2_b0_ecoformer.pth', 'ecoformer_pvt_b0.pth'):
        (checkpoints / name).touch()
    assert locate('ecoformer_pvt_b0') == 'checkpoints/ecoformer_pvt_b0.pth'


def test_paths_and_addresses_are_themselves(checkpoints):
    (checkpoints / 'mine.pth').touch()
    assert locate('checkpoints/mine.pth') == 'checkpoints/mine.pth'
    for source in ('https://example.org/a.pth', 's3://bucket/a.pth', 'timm/model.tag'):
        assert locate(source) == source
    with pytest.raises(CheckpointError, match='known: .*ecoformer_pvt_b0'):
        locate('ecoformer_b0')
