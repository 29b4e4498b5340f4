"""Predict for a photograph, or all those of a folder, and draw the predictions.

Writes into the output folder a picture for every photograph, predictions.json with the
names, scores, boxes and masks (COCO's run lengths), and for segmentors the class of
every pixel as labels/<name>.png.
"""
import argparse
import json
import os
import sys
from pathlib import Path

from mmengine.config import DictAction
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError
from mm_efficient.files import check_output, find_images
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.inference import build_predictor

LISTED = 20  # photographs in the table

EXAMPLES = r"""examples:
  a folder through a detector:
    python tools/infer.py photos/ configs/det/soft_small_maskrcnn_1x.py epoch_12.pth
  one photograph, every detection with a score of 0.1 or more:
    python tools/infer.py photo.jpg CONFIG CHECKPOINT --score-thr 0.1 --out-dir found
  published weights, converted by tools/model_converters/convert.py:
    python tools/infer.py photo.jpg configs/cls/soft_small_300e.py soft_small.pth
  a checkpoint that was trained with --mini:
    python tools/infer.py photos/ CONFIG CHECKPOINT --mini
"""


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', help='photograph, or folder of photographs')
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='predictions', metavar='FOLDER',
                        help='where to write (default: predictions)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='smallest score of detections (default: 0.3)')
    parser.add_argument('--device',
                        help='cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    parser.add_argument('--mini', action='store_true',
                        help='for a checkpoint that was trained with --mini')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE',
                        help='override settings of the config')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of classes of every head')
    return parser.parse_args(argv)


def predict_all(args):
    """Predict for every photograph; what to print about each."""
    files = find_images(args.images)
    out_dir = Path(args.out_dir)
    if out_dir.resolve() == files[0].resolve().parent:
        raise InputError(f'--out-dir {out_dir} is where the photographs are; the '
                         'pictures are called like them. Name another folder.')
    cfg = load_config(args.config, args.cfg_options, args.mini,
                      num_classes=args.num_classes)
    check_output(out_dir / 'predictions.json', ['.json'])
    predictor = build_predictor(cfg, args.checkpoint, args.device, args.score_thr)
    labels = out_dir / 'labels' if hasattr(predictor, 'save_labels') else None
    if labels:
        labels.mkdir(exist_ok=True)
    found = {}
    for file in track(files, 'predicting', transient=True):
        sample = predictor.predict(file)
        predictor.draw(file, sample, out_dir / file.name)
        if labels:
            predictor.save_labels(sample, labels / f'{file.name}.png')
        found[file.name] = predictor.describe(sample)
    draft = out_dir / '.predictions.json.tmp'
    draft.write_text(json.dumps(found, indent=1))
    os.replace(draft, out_dir / 'predictions.json')
    return [(name, predictor.sum_up(each)) for name, each in found.items()]


def main(argv=None):
    """Predict as the command line says."""
    args = parse_args(argv)
    try:
        lines = predict_all(args)
    except InputError as error:
        sys.exit(f'error: {error}')
    table = Table('photograph', 'prediction')
    for line in lines[:LISTED]:
        table.add_row(*line)
    Console().print(table)
    if len(lines) > LISTED:
        print(f'and {len(lines) - LISTED} more')
    print(f'pictures of {len(lines)} predictions and predictions.json: {args.out_dir}')


if __name__ == '__main__':
    main()
