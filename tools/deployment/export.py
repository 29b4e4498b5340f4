"""Export a model to ONNX, TorchScript, torch.export or Core ML.

An exported whole model takes RGB images, 0 to 255 (float32), resized as the config
says, and predicts what the model does in PyTorch: normalisation, padding, box decoding
and NMS are included. Batch size, height and width are dynamic, except with --static and
for Core ML. A file is compared with PyTorch on images of two shapes before it is kept,
but for Core ML's, which run on Macs only.

  input    (B, 3, H, W)
  output   classification: probabilities (B, classes)
           segmentation: class of every pixel (B, 1, H, W)
  dets     detection: x1, y1, x2, y2 in pixels, score (B, K, 5), best first
  labels   classes of dets (B, K); unused rows have label -1 and score 0
  masks    probabilities on a grid over each box (B, K, 28, 28)
  feat0 .. --backbone: feature maps of normalised images
"""
import argparse
import logging
import time

from mmengine.logging import MMLogger
from rich.console import Console
from rich.status import Status

import mm_efficient  # noqa: F401
from mm_efficient.analysis import image_shape
from mm_efficient.deploy.exporting import SUFFIXES, check_format, export
from mm_efficient.deploy.preparation import prepare_export
from mm_efficient.errors import error_line
from mm_efficient.files import check_output, find_images
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.options import OptionsAction
from mm_efficient.runs.settings import start_from_scratch

EXAMPLES = r"""examples:
  a detector, from the image to the boxes:
    python tools/deployment/export.py configs/det/soft_small_maskrcnn_1x.py \
        epoch_12.pth --image image.jpg --out soft_small_maskrcnn.onnx
  a classifier for a fixed shape, as TorchScript:
    python tools/deployment/export.py configs/cls/lowformer_b1_300e.py \
        lowformer_b1.pth --shape 224 --static --out lowformer_b1.pt
  the backbone of a segmentor:
    python tools/deployment/export.py configs/seg/swiftformer_l1_fpn_40k.py \
        iter_40000.pth --backbone --out swiftformer_l1.onnx
  a classifier for Apple devices (pip install 'mm-efficient[coreml]'):
    python tools/deployment/export.py configs/cls/swiftformer_xs_300e.py \
        swiftformer_xs.pth --out swiftformer_xs.mlpackage
  TensorRT: export to ONNX first, see docs/deployment.md
"""
MIN_SIDE = 32  # stride of the backbones


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('checkpoint', nargs='?',
                        help='checkpoint file (default: random weights, which are '
                        'enough for timing; or those of '
                        '--cfg-options model.backbone.init_cfg...)')
    parser.add_argument('--out', required=True, metavar='FILE',
                        help='output file; the suffix chooses the format: .onnx, .pt '
                        '(TorchScript), .pt2 (torch.export) or .mlpackage (Core ML)')
    parser.add_argument('--format', choices=SUFFIXES,
                        help='output format; must match the suffix of --out')
    parser.add_argument('--backbone', action='store_true',
                        help='export only the backbone')
    parser.add_argument('--shape', type=image_shape, metavar='SHAPE',
                        help='224, or 800x1344 (height x width): input shape of a '
                        'static export, and of the first comparison (default: 224 for '
                        'classifiers, otherwise 256x320)')
    parser.add_argument('--static', action='store_true',
                        help='fix the input to one image of --shape')
    parser.add_argument('--fp16', action='store_true',
                        help='Core ML only: export in float16, which the Neural Engine '
                        'needs (SwiftFormer and LowFormer)')
    parser.add_argument('--opset', type=int, metavar='N',
                        help='ONNX only: version of the operators, at least 18 for '
                        "most models (default: PyTorch's)")
    parser.add_argument('--no-fuse', dest='fuse', action='store_false',
                        help='do not fuse batch norms and layer scales')
    parser.add_argument('--image', metavar='PATH',
                        help='image or folder of images to compare on; a detector '
                        'needs images with objects (default: synthetic scenes)')
    parser.add_argument('--mini', action='store_true',
                        help='the checkpoint was trained with --mini')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction,
                        metavar='KEY=VALUE', help='override settings of the config')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of classes of every head')
    args = parser.parse_args(argv)
    if args.shape and min(args.shape) < MIN_SIDE:
        parser.error(f'--shape: expected sides of at least {MIN_SIDE}, got '
                     f'{args.shape[0]}x{args.shape[1]}')
    return args


def print_result(result, console):
    """Print what was fused, how well outputs agree, and the operators."""
    if result.fusion is not None:
        console.print(f'fused: {result.fusion}')
    for parity in result.parity:
        console.print(f'compared with PyTorch, {parity}')
        if not parity.metrics.get('boxes', 1):
            console.print('  no boxes to compare: pass --image with an image in which '
                          'the model detects objects')
        if parity.metrics.get('classes', 2) == 1:
            console.print('  one class to compare: pass --image with an image in which '
                          'the model finds several')
    if not result.parity:
        console.print('not compared with PyTorch: Core ML runs on Apple systems only')
    if result.operators:
        console.print(f'{sum(result.operators.values())} nodes: ' + ', '.join(
            f'{name} {count}' for name, count in result.operators.items()))


def main(argv=None):
    """Export a model."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    console = Console()
    with error_line():
        check_output(args.out, SUFFIXES.values(),
                     [args.checkpoint, args.image])
        format = args.format or next(
            name for name, suffix in SUFFIXES.items()
            if args.out.lower().endswith(suffix))
        check_format(format, args.out, args.fp16, args.opset)
        files = find_images(args.image) if args.image else []
        options = args.cfg_options or {}
        cfg = load_config(args.config, options, args.mini,
                          num_classes=args.num_classes)
        if args.checkpoint is None and not any(
                key.startswith('model.backbone.init_cfg') for key in options):
            start_from_scratch(cfg)  # without a download
        model, images, metadata = prepare_export(
            cfg, args.checkpoint, files=files, shape=args.shape, static=args.static,
            backbone=args.backbone)
        start = time.process_time()
        with Status('', console=Console(stderr=True)) as status:
            result = export(
                model, args.out, images, format=format, backbone=args.backbone,
                fused=args.fuse, static=args.static, fp16=args.fp16,
                opset=args.opset,
                metadata={'config': args.config, **metadata}, progress=status.update)
    console.print(f'weights: {metadata["weights"]}')
    print_result(result, console)
    console.print(f'{time.process_time() - start:.0f} s of CPU time')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
