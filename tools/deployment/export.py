"""Export a model to ONNX, TorchScript, a program of torch.export or Core ML.

What is exported of a whole model takes RGB photographs of 0 to 255 (float32), resized
as its config says, and gives what its prediction in PyTorch does: normalisation,
padding, decoding and suppression are part of it. Batch, height and width are free,
unless --static or coreml. The file is compared with PyTorch on photographs of two sizes
before it is kept.

  input    (B, 3, H, W)
  output   classification: probabilities (B, classes)
           segmentation: class of every pixel (B, 1, H, W)
  dets     detection: x1, y1, x2, y2 in pixels, score (B, K, 5), best first
  labels   their classes (B, K); -1 and a score of 0 where there is no more
  masks    probabilities on a grid over every box (B, K, 28, 28)
  feat0.. --backbone: the levels, of normalised images
"""
import argparse
import logging
import sys

import torch
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.status import Status

import mm_efficient  # noqa: F401
from mm_efficient.analysis.models import image_size
from mm_efficient.deploy.exporting import SUFFIXES, check_format, export
from mm_efficient.deploy.models import deploy_model
from mm_efficient.deploy.samples import photographs, randomize
from mm_efficient.errors import InputError, explain
from mm_efficient.files import check_output, find_images
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.inference import dataset_meta
from mm_efficient.runs.models import load_model, model_input
from mm_efficient.weights.checking import check_checkpoint

EXAMPLES = r"""examples:
  a detector, with everything from the photograph to the boxes:
    python tools/deployment/export.py configs/det/soft_small_maskrcnn_1x.py \
        epoch_12.pth --image photo.jpg --out soft_small_maskrcnn.onnx
  a classifier for a fixed size, as TorchScript:
    python tools/deployment/export.py configs/cls/lowformer_b1_300e.py \
        lowformer_b1.pth --size 224 --static --out lowformer_b1.pt
  the backbone of a segmentor:
    python tools/deployment/export.py configs/seg/swiftformer_l1_fpn_40k.py \
        iter_40000.pth --backbone --out swiftformer_l1.onnx
  a classifier for Apple's devices (pip install 'mm-efficient[coreml]'):
    python tools/deployment/export.py configs/cls/swiftformer_xs_300e.py \
        swiftformer_xs.pth --out swiftformer_xs.mlpackage
  TensorRT, from an ONNX file: see docs/deployment.md
"""
MIN_SIZE = 32  # the stride of the backbones
DEFAULT_SIZES = dict(mmpretrain=(224, 224), mmdet=(256, 320), mmseg=(256, 320))


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('checkpoint', nargs='?',
                        help='checkpoint file (default: the weights that init_cfg of '
                        'the config names, or else random ones, good for timing)')
    parser.add_argument('--out', required=True, metavar='FILE',
                        help='file to write; .onnx, .pt (TorchScript), .pt2 '
                        '(torch.export) or .mlpackage (Core ML) says the format')
    parser.add_argument('--format', choices=SUFFIXES, help='of the file (default: what '
                        'its name says); another one than its name says is an error')
    parser.add_argument('--backbone', action='store_true', help='the backbone alone')
    parser.add_argument('--size', type=image_size, metavar='SIZE',
                        help='224, or 800x1344, height x width: size of a static '
                        'export, and of the first comparison (default: 224, 256x320 '
                        'for detection and segmentation)')
    parser.add_argument('--static', action='store_true',
                        help='one image of --size only')
    parser.add_argument('--half', action='store_true',
                        help='Core ML: float16, which the Neural Engine needs '
                        '(SwiftFormer and LowFormer)')
    parser.add_argument('--no-fuse', dest='fuse', action='store_false',
                        help='do not fold norms and scales into other layers')
    parser.add_argument('--image', metavar='PATH',
                        help='photograph or folder to compare on; of a detector better '
                        'with objects of its classes (default: generated scenes)')
    parser.add_argument('--mini', action='store_true',
                        help='for a checkpoint that was trained with --mini')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='override settings of the config')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of classes of every head')
    args = parser.parse_args(argv)
    if args.size and min(args.size) < MIN_SIZE:
        parser.error(f'--size: expected sides of at least {MIN_SIZE}, got '
                     f'{args.size[0]}x{args.size[1]}')
    return args


def names_weights(cfg):
    """Whether an ``init_cfg`` in the config of a model is of trained weights."""
    if isinstance(cfg, (list, tuple)):
        return any(map(names_weights, cfg))
    return isinstance(cfg, dict) and (
        cfg.get('type') == 'Pretrained' or any(map(names_weights, cfg.values())))


def prepare(args):
    """Everything that is checked and read before the export.

    Returns:
        tuple: The model, batches to compare on, and metadata.
    """
    check_output(args.out, SUFFIXES.values())
    args.format = args.format or next(
        name for name, suffix in SUFFIXES.items() if args.out.endswith(suffix))
    check_format(args.format, args.out, args.half)
    files = find_images(args.image)[:2] if args.image else []
    cfg = load_config(args.config, args.cfg_options, args.mini,
                      num_classes=args.num_classes)
    model = load_model(cfg, args.checkpoint)
    size = args.size or DEFAULT_SIZES[cfg.default_scope]
    batches = photographs(files, size)[:1 if args.static else 2]
    weights = check_checkpoint(args.checkpoint) if args.checkpoint else None
    meta = dataset_meta(cfg, weights or {})
    origin = args.checkpoint or ('those of init_cfg' if names_weights(cfg.model)
                                 else 'random')
    metadata = dict(config=args.config, weights=origin, task=cfg.default_scope,
                    classes=list(meta['classes']), input='RGB, 0 to 255')
    first = batches[0][0].permute(1, 2, 0).byte().numpy()
    model_input(model, first)  # fits hash functions that are not
    if origin == 'random':
        shapes = ', '.join(' x '.join(map(str, batch.shape)) for batch in batches)
        with explain(f'the model cannot run images of {shapes}',
                        '--size and --static choose others.'):
            randomize(deploy_model(model), lambda module, x: module.network(x), batches)
    if args.backbone:
        metadata['input'] = 'normalised'
        batches = [torch.cat([model_input(model, image.permute(1, 2, 0).byte().numpy())
                              for image in batch]) for batch in batches]
        model = model.backbone
    return model, batches, metadata


def print_export(result, console):
    """What was folded, how well it agrees, of which operators it is."""
    if result.fusion is not None:
        console.print(f'folded: {len(result.fusion.folded)} norms, '
                      f'{len(result.fusion.converted)} scales and the like '
                      '(tools/deployment/fuse.py lists them)')
    for each in result.agreements:
        console.print(f'compared with PyTorch, {each}')
        if not each.figures.get('boxes', 1):
            console.print('  no box to compare: name a photograph with --image that '
                          'the model finds something in')
        if each.figures.get('classes', 2) == 1:
            console.print('  one class to compare: name a photograph with --image that '
                          'the model finds more in')
    if result.operators:
        console.print('operators: ' + ', '.join(
            f'{name} {number}' for name, number in result.operators.items()))


def main(argv=None):
    """Export as the command line says."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    console = Console()
    try:
        model, batches, metadata = prepare(args)
        with Status('', console=Console(stderr=True)) as status:
            result = export(
                model, args.out, batches, format=args.format,
                backbone=args.backbone, fused=args.fuse, static=args.static,
                half=args.half, metadata=metadata, progress=status.update)
    except InputError as error:
        sys.exit(f'error: {error}')
    console.print(f'weights: {metadata["weights"]}')
    print_export(result, console)
    if not result.agreements:
        console.print("not compared: Core ML runs on Apple's systems only")
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
