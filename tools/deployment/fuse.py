"""Report what can be fused in a model for inference. Nothing is written.

Shows what mm_efficient.deploy.fuse() does: modules that simplify themselves by
switch_to_deploy(), batch norms folded into convolutions, norms left, parameters before
and after, and the deviation, which is the largest difference of an output on a random
image relative to the largest output. A deviation beyond rounding is an error.

Two-stage detectors are verified up to their neck. Measure the speed-up with
tools/analysis_tools/benchmark.py --backend fused.
"""
import logging

import torch
from mmengine.logging import MMLogger

import mm_efficient  # noqa: F401
from mm_efficient.analysis import find_model, model_parser
from mm_efficient.deploy import fuse, randomize
from mm_efficient.errors import error_line, explain
from mm_efficient.models.base import fit_where_needed
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.models import load_model

EXAMPLES = r"""examples:
  variants, and models of other libraries:
    python tools/deployment/fuse.py swiftformer_xs timm/resnet50 repvgg-a0_8xb32_in1k
  a detector; a small image is enough:
    python tools/deployment/fuse.py swiftformer_l1_retinanet_1x --shape 224
  a trained segmentor:
    python tools/deployment/fuse.py configs/seg/swiftformer_l1_upernet_160k.py \
        --checkpoint iter_160000.pth
"""


def parse_args(argv=None):
    """Parse the command line."""
    parser = model_parser(f'{__doc__}\n{EXAMPLES}')
    parser.add_argument('--checkpoint', metavar='FILE',
                        help='weights; needs a single config file as MODEL (default: '
                        'random weights)')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='with --checkpoint: number of classes of every head')
    args = parser.parse_args(argv)
    if args.checkpoint and (len(args.models) > 1 or not args.models[0].endswith('.py')):
        parser.error('--checkpoint needs a single config file as MODEL')
    return args


def fuse_model(spec, args):
    """Build and fuse a model; returns the report."""
    torch.manual_seed(0)
    if args.checkpoint is not None:
        cfg = load_config(args.models[0], args.cfg_options,
                          num_classes=args.num_classes)
        model = load_model(cfg, args.checkpoint)
    else:
        with explain(f'{spec.name} cannot be built'):
            model = spec.build()
    model.eval()
    fit_where_needed(model, torch.randn(2, 3, 96, 96))
    run = spec.run
    if hasattr(model, 'roi_head'):  # the second stage is data-dependent
        def run(model, x):
            return model.extract_feat(x)
    height, width = args.shape or spec.shape
    x = torch.randn(1, 3, height, width)
    with explain(f'{spec.name} cannot run on an image of {height} x {width} pixels'):
        if not args.checkpoint:
            randomize(model, run, [x])
        return fuse(model, x, run)


def main(argv=None):
    """Fuse models and print a report on each."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    with error_line():
        for spec in [find_model(name, args.cfg_options) for name in args.models]:
            print(f'{spec.name}: {fuse_model(spec, args)}', flush=True)


if __name__ == '__main__':
    main()
