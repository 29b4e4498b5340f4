"""Predict an image, or every image of a folder, with OpenMMLab's inferencers.

Output folder:
  vis/<image>       image with its prediction (vis/<image>.png for classifiers)
  pred/<image>.png  label map of a segmentor
  predictions.json  written last: "classes" has the class names, "images" maps every
                    image to
    classification  pred_label, pred_score, pred_class, pred_scores (of all classes)
    detection       labels, scores, bboxes (x1, y1, x2, y2 in pixels), masks (COCO RLE)
                    of all detections, including those below --score-thr
    segmentation    sem_seg (its label map), shares (fraction of pixels per class)

examples:
  infer.py images/ configs/det/soft_small_maskrcnn_1x.py epoch_12.pth
  infer.py image.jpg CONFIG CHECKPOINT --score-thr 0.1 --out-dir found
  published weights, converted by tools/model_converters/convert.py:
  infer.py image.jpg configs/cls/soft_small_300e.py soft_small.pth
"""
import argparse
import contextlib
import json
import sys
from collections import Counter
from pathlib import Path

from rich.progress import track

from mm_efficient.errors import ExecutionError, InputError, error_line
from mm_efficient.files import check_output, find_images, whole_file
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.inference import build_inferencer, predict
from mm_efficient.runs.options import tool_parser
from mm_efficient.runs.work_dirs import check_work_dir

MAX_LINES = 20  # predictions to print


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = tool_parser(__doc__)
    parser.add_argument('images', help='image, or folder of images')
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='predictions', type=Path, metavar='FOLDER',
                        help='output folder (default: predictions)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='lowest score of detections to draw (default: 0.3)')
    parser.add_argument('--device',
                        help='cpu, cuda, cuda:1, ... (default: a GPU if available)')
    args = parser.parse_args(argv)
    if args.score_thr != args.score_thr:
        parser.error('--score-thr: expected a number, got nan')
    return args


def find_inputs(source: str, out_dir: Path) -> list[Path]:
    """Find the images, and check that their results can be written."""
    files = find_images(source)
    for folder in (out_dir, out_dir / 'vis', out_dir / 'pred'):
        check_work_dir(folder, '--out-dir')
        if folder != out_dir and folder.resolve() == files[0].resolve().parent:
            raise InputError(f'--out-dir {out_dir} would overwrite the images in '
                             f'{folder}. Choose another folder.')
    if out_dir.is_dir():
        check_output(out_dir / 'predictions.json', ['.json'])
    return files


def summarize(result: dict, classes: list[str], score_thr: float) -> str:
    """Summarize a prediction in one line."""
    if 'pred_class' in result:
        return f'{result["pred_class"]} {result["pred_score"]:.2f}'
    if 'shares' in result:
        largest = list(result['shares'].items())[:5]
        return ', '.join(f'{name} {share:.0%}' for name, share in largest)
    counts = Counter(classes[label] for label, score in
                     zip(result['labels'], result['scores']) if score >= score_thr)
    return ', '.join(f'{number} {name}' for name, number in counts.most_common()) \
        or f'no detection with a score of at least {score_thr}'


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    with error_line():
        files = find_inputs(args.images, args.out_dir)
        cfg = load_config(args.config, args.cfg_options, args.mini,
                          num_classes=args.num_classes)
        inferencer = build_inferencer(cfg, args.checkpoint, args.device)
        classes = list(inferencer.model.dataset_meta['classes'])
        found, failed = {}, []
        for file in track(files, 'predicting', transient=True):
            try:
                found[file.name] = predict(inferencer, cfg.default_scope, file,
                                           args.out_dir, args.score_thr)
            except (InputError, ExecutionError) as error:
                if len(failed) + 1 == len(files):
                    for folder in (args.out_dir / 'vis', args.out_dir):
                        with contextlib.suppress(OSError):  # not empty
                            folder.rmdir()
                    raise
                failed.append(str(error))
        with whole_file(args.out_dir / 'predictions.json') as draft:
            draft.write_text(json.dumps(dict(classes=classes, images=found)))
    for name, result in list(found.items())[:MAX_LINES]:
        print(f'{name}: {summarize(result, classes, args.score_thr)}')
    if len(found) > MAX_LINES:
        print(f'and {len(found) - MAX_LINES} more')
    print(f'written: {args.out_dir} (predictions.json, vis/)')
    if failed:
        sys.exit(f'error: {len(failed)} of {len(files)} images are left out: '
                 + failed[0])


if __name__ == '__main__':
    main()
