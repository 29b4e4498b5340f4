r"""Look at every file of a config's data sets, and list what a run would fail on.

Annotation files, images (decoded in full) and label maps (against their images and the
classes of the model). Nothing is changed. The exit status is 1 if anything is wrong.

examples:
  check_dataset.py configs/det/soft_tiny_maskrcnn_1x.py --data-root /datasets/mine
  check_dataset.py configs/seg/soft_tiny_fpn_80k.py --data-root /datasets/mine \
      --classes background road car --splits val
"""
import argparse
import json
import sys
from collections.abc import Iterable, Iterator

from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mm_efficient.errors import ExecutionError, InputError, error_line
from mm_efficient.runs.arguments import check_datasets
from mm_efficient.runs.coco_entries import coco_readers
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.data_checks import check_data
from mm_efficient.runs.image_checks import Fault, Loaders, build_dataset
from mm_efficient.runs.mini import generate_mini_data
from mm_efficient.runs.options import data_parser
from mm_efficient.runs.own_data import find_classes
from mm_efficient.runs.traversal import SPLITS, split_datasets


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = data_parser(__doc__)
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, default=['train', 'val'],
                        help='data sets of the config (default: train val)')
    parser.add_argument('--limit', type=int, default=50, metavar='N',
                        help='rows of the table (default: 50)')
    return parser.parse_args(argv)


def entry_faults(cfg: Config, split: str) -> Iterator[Fault]:
    """Faults of the annotation files of a split."""
    for path, reader in coco_readers(cfg, split):
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        for entry, fault in reader.faults(content):
            yield path, f'{entry} {fault}'
        for note in reader.notes():
            yield path, note


def file_faults(cfg: Config, split: str) -> Iterator[Fault]:
    """Faults of the images and label maps of a split, with a progress bar."""
    for settings in split_datasets(cfg, split):
        dataset = build_dataset(cfg, settings, split, large=True)
        if dataset is None:
            print(f'{split}: {settings.get("type")} is not looked at: it is not on '
                  'this machine, or has no list of files')
            continue
        loaders = Loaders(cfg, settings)
        for i in track(range(len(dataset)), f'{split}, {len(dataset)} samples',
                       console=Console(stderr=True)):
            info = dataset.get_data_info(i)
            yield from loaders.unreadable(info, decode=True)
            yield from loaders.too_deep(info)
            yield from loaders.map_faults(info, split != 'train')


def collected(place: str, found: Iterable[Fault]) -> Iterator[tuple[str, str, str]]:
    """Rows of the table; an error ends them and is the last one."""
    try:
        for fault in found:
            yield (place, *fault)
    except (InputError, ExecutionError) as error:
        yield place, '', str(error)


def general_faults(cfg: Config, args: argparse.Namespace, splits: list[str]
                   ) -> Iterator[Fault]:
    """Faults of what several splits have in common; ends with an error."""
    find_classes(cfg, splits, args.classes, args.num_classes)
    yield from ()


def missing_files(cfg: Config, split: str) -> Iterator[Fault]:
    """Missing files and folders of a split; ends with an error."""
    check_data(cfg, split)
    yield from ()


def all_faults(cfg: Config, args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Split, place and fault of everything that is wrong."""
    splits = []
    for split in args.splits:
        missing = list(collected(split, missing_files(cfg, split)))
        yield from missing
        splits += [] if missing else [split]
    yield from collected(', '.join(splits), general_faults(cfg, args, splits))
    for split in splits:
        yield from collected(split, entry_faults(cfg, split))
        yield from collected(split, file_faults(cfg, split))


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    with error_line():
        cfg = load_config(args.config, args.cfg_options, args.mini,
                          data_root=args.data_root, num_classes=args.num_classes,
                          classes=args.classes)
        check_datasets(cfg, [split for split in args.splits
                             if cfg.get(f'{split}_dataloader')])
        if args.mini:
            generate_mini_data(cfg.default_scope)
        found = list(all_faults(cfg, args))
    if not found:
        print('nothing is wrong')
        return
    table = Table('split', 'file', 'fault')
    for row in found[:args.limit]:
        table.add_row(*(text.replace('[', r'\[') for text in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print(f'{len(found)} faults' + (f', {args.limit} of them shown; more with --limit'
                                    if len(found) > args.limit else ''))
    sys.exit(1)


if __name__ == '__main__':
    main()
