"""What the authors of the families report, with sources. None of it is ours.

The one place of published figures: metafiles and the tables of README take them from
here. Keys of a variant: ``parameters`` and ``macs``, of the classifier at 224 x 224, in
the digits given; by method, the metrics as MIM names them. Reported figures that the
published code does not give are in ``deviates``, with the reason in ``notes``.
"""
from typing import NamedTuple


class Family(NamedTuple):
    """A family of models and what is reported of it.

    Args:
        classes (tuple[str]): Its classes in ``mmpretrain.registry.MODELS``.
        title (str): Title of the paper.
        paper (str): Address of the paper.
        venue (str): Where it was published.
        code (str): Address of the published code.
        licence (str): Of the published code.
        sources (dict[str, str]): Where the figures of a method are from.
        variants (dict[str, dict]): Figures by variant, the prefix of its configs.
        notes (tuple[str]): What to know about the figures, in Markdown.
        deviates (frozenset[tuple[str, str]]): Variant and key of reported figures
            that the published code does not give.
        references (dict[str, str]): Name of a variant's reference file, if it is
            another than the variant's.
    """
    classes: tuple[str, ...]
    title: str
    paper: str
    venue: str
    code: str
    licence: str
    sources: dict[str, str]
    variants: dict[str, dict]
    notes: tuple[str, ...] = ()
    deviates: frozenset[tuple[str, str]] = frozenset()
    references: dict[str, str] = {}


def top1(value: float) -> dict:
    """ImageNet-1K, at 224 x 224 unless the method is another resolution."""
    return {'Top 1 Accuracy': value}


def box(value: float) -> dict:
    """COCO val2017."""
    return {'box AP': value}


def box_mask(box_ap: float, mask_ap: float) -> dict:
    """COCO val2017."""
    return {'box AP': box_ap, 'mask AP': mask_ap}


def miou(value: float) -> dict:
    """ADE20K validation, one scale."""
    return {'mIoU': value}


SOFT = Family(
    classes=('SOFT', ),
    title='SOFT: Softmax-free Transformer with Linear Complexity',
    paper='https://arxiv.org/abs/2110.11945',
    venue='NeurIPS 2021, IJCV 2024',
    code='https://github.com/fudan-zvg/SOFT',
    licence='MIT',
    sources=dict.fromkeys(('cls', 'retinanet', 'maskrcnn', 'upernet'),
                          'README of https://github.com/fudan-zvg/SOFT'),
    variants=dict(
        soft_tiny=dict(parameters='13M', macs='1.9G', cls=top1(79.3)),
        soft_tiny_norm=dict(
            parameters='13M', macs='1.9G', cls=top1(79.4), retinanet=box(40.0),
            maskrcnn=box_mask(41.2, 38.2)),
        soft_small=dict(parameters='24M', macs='3.3G', cls=top1(82.2)),
        soft_small_norm=dict(
            parameters='24M', macs='3.3G', cls=top1(82.4), retinanet=box(42.8),
            maskrcnn=box_mask(43.8, 40.1), upernet=miou(46.2)),
        soft_medium=dict(parameters='45M', macs='7.2G', cls=top1(82.9)),
        soft_medium_norm=dict(
            parameters='45M', macs='7.2G', cls=top1(83.1), retinanet=box(44.3),
            maskrcnn=box_mask(46.6, 42.0), upernet=miou(48.0)),
        soft_large=dict(parameters='64M', macs='11.0G', cls=top1(83.1)),
        soft_large_norm=dict(
            parameters='64M', macs='11.0G', cls=top1(83.3), retinanet=box(45.3),
            maskrcnn=box_mask(47.0, 42.2)),
        soft_huge=dict(parameters='87M', macs='16.3G', cls=top1(83.3)),
        soft_huge_norm=dict(parameters='87M', macs='16.3G', cls=top1(83.4))),
    notes=(
        'The reported MACs are of convolutions and linear layers only, within 5 %; '
        'the measured ones count every product.',
        'The published factory builds Small with 20 blocks in stage 3, which fits none '
        'of the reported numbers; that model is the arch `small_d20`.',
        'All COCO and ADE20K results are of the Norm family.'),
    deviates=frozenset((f'soft_{arch}{norm}', 'macs')
                       for arch in ('tiny', 'small', 'medium', 'large', 'huge')
                       for norm in ('', '_norm')))

ECOFORMER = Family(
    classes=('EcoFormerPVT', 'EcoFormerTwins'),
    title='EcoFormer: Energy-Saving Attention with Linear Complexity',
    paper='https://arxiv.org/abs/2209.09004',
    venue='NeurIPS 2022',
    code='https://github.com/ziplab/EcoFormer',
    licence='Apache-2.0',
    sources=dict(cls='README of https://github.com/ziplab/EcoFormer'),
    variants=dict(
        ecoformer_pvt_b0=dict(cls=top1(70.44)),
        ecoformer_pvt_b1=dict(cls=top1(78.38)),
        ecoformer_pvt_b2=dict(cls=top1(81.28)),
        ecoformer_pvt_b3=dict(cls=top1(81.96)),
        ecoformer_pvt_b4=dict(cls=top1(81.90)),
        ecoformer_twins_s=dict(cls=top1(80.22))),
    notes=(
        'No detection or segmentation with EcoFormer was published, nor its parameters '
        'and MACs.',
        'Energy, multiplications and additions by EcoFormer\'s own model '
        '(`tools/analysis_tools/get_energy.py`) agree with the reported ones, except '
        'the additions of B3: 6.72 G, reported 6.75.'),
    references=dict(
        **{f'ecoformer_pvt_b{i}': f'pvtv2_b{i}_ecoformer' for i in range(5)},
        ecoformer_twins_s='twins_svt_s_ecoformer'))

SWIFTFORMER = Family(
    classes=('SwiftFormer', ),
    title='SwiftFormer: Efficient Additive Attention for Transformer-based Real-time '
    'Mobile Vision Applications',
    paper='https://arxiv.org/abs/2303.15446',
    venue='ICCV 2023',
    code='https://github.com/Amshaker/SwiftFormer',
    licence='Apache-2.0',
    sources=dict(
        cls='README of https://github.com/Amshaker/SwiftFormer',
        maskrcnn='https://arxiv.org/abs/2303.15446, table 3',
        fpn='https://arxiv.org/abs/2303.15446, table 3'),
    variants=dict(
        swiftformer_xs=dict(parameters='3.5M', macs='0.6G', cls=top1(75.7)),
        swiftformer_s=dict(parameters='6.1M', macs='1.0G', cls=top1(78.5)),
        swiftformer_l1=dict(
            parameters='12.1M', macs='1.6G', cls=top1(80.9),
            maskrcnn=box_mask(41.2, 38.1), fpn=miou(41.4)),
        swiftformer_l3=dict(
            parameters='28.5M', macs='4.0G', cls=top1(83.0),
            maskrcnn=box_mask(42.7, 39.1), fpn=miou(43.9))),
    notes=('Older copies of the reported table give XS 0.4 GMACs and L3 26.5 M '
           'parameters; the authors corrected both.', ))

LOWFORMER = Family(
    classes=('LowFormer', ),
    title='LowFormer: Hardware Efficient Design for Convolutional Transformer '
    'Backbones',
    paper='https://arxiv.org/abs/2409.03460',
    venue='WACV 2025',
    code='https://github.com/altair199797/LowFormer',
    licence='Apache-2.0',
    sources=dict(
        cls='README of https://github.com/altair199797/LowFormer',
        retinanet='https://arxiv.org/abs/2409.03460',
        fpn='https://arxiv.org/abs/2409.03460'),
    variants=dict(
        lowformer_b0=dict(
            parameters='14.1M', macs='944M', cls=top1(78.4), retinanet=box(38.6)),
        lowformer_b1=dict(
            parameters='17.9M', macs='1410M', cls=top1(79.9), retinanet=box(39.4),
            fpn=miou(39.7)),
        lowformer_b15=dict(parameters='33.9M', macs='2573M', cls=top1(81.2)),
        lowformer_b2=dict(retinanet=box(41.4), fpn=miou(42.8)),
        lowformer_b3=dict(
            parameters='57.1M', macs='6098M', cls=top1(83.6), retinanet=box(43.1),
            fpn=miou(44.6)),
        lowformer_e1=dict(macs='1350M', cls=top1(78.8)),
        lowformer_e2=dict(macs='3800M', cls=top1(81.6)),
        lowformer_e3=dict(macs='5350M', cls=top1(83.0))),
    notes=(
        'E1 to E3 are from the journal extension (https://arxiv.org/abs/2603.26551).',
        'The reported 5350 M MACs of E3 are not those of its published configuration.',
        'The published code defines B2 in three ways; ours is the one of its package '
        'and of timm, and whether the reported results are of it is not known.',
        'The detection and segmentation results are in the paper only, their settings '
        'were not released.'),
    deviates=frozenset({('lowformer_e3', 'macs')}))

REDUCEFORMER = Family(
    classes=('ReduceFormer', ),
    title='ReduceFormer: Attention with Tensor Reduction by Summation',
    paper='https://arxiv.org/abs/2406.07488',
    venue='CVPR 2024 workshop',
    code='https://github.com/NVIDIA/DL4AGX/tree/master/Models/ReduceFormer',
    licence='Apache-2.0 text, non-commercial according to its README',
    sources=dict.fromkeys(
        ('cls', 'r256', 'r288'),
        'README of https://github.com/NVIDIA/DL4AGX, Models/ReduceFormer'),
    variants=dict(
        reduceformer_b1=dict(parameters='9.0M', macs='0.52G', cls=top1(79.3),
                             r256=top1(80.1), r288=top1(80.6)),
        reduceformer_b2=dict(parameters='24.5M', macs='1.68G', cls=top1(81.9),
                             r256=top1(82.6), r288=top1(83.0)),
        reduceformer_b3=dict(parameters='48.1M', macs='3.87G', cls=top1(83.4),
                             r256=top1(83.6), r288=top1(84.2))),
    notes=(
        'The reported MACs include norms, activations and biases (up to 3 % more).',
        'The reported parameters and MACs of B2 are not those of its published code, '
        'which has 24.0 M.',
        'No weights, and no detection or segmentation were published.'),
    deviates=frozenset(('reduceformer_b2', key) for key in ('parameters', 'macs')))

FAMILIES = dict(
    SOFT=SOFT, EcoFormer=ECOFORMER, SwiftFormer=SWIFTFORMER, LowFormer=LOWFORMER,
    ReduceFormer=REDUCEFORMER)
