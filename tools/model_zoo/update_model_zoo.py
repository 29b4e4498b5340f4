"""Make model-index.yml, the metafiles and README's tables of the families anew.

    update_model_zoo.py
    pytest tests/models -s -k matches_the_published | tee parity.log
    update_model_zoo.py --parity parity.log

Measures parameters, FLOPs and activations of the model of every config (two to three
minutes), and adds what the authors report, from mm_efficient/analysis/reported.py, and
times, from what benchmark.py wrote to docs/benchmark/ (see docs/reproducing.md). For a
new family: add it to reported.py, and run this.
"""
import argparse
import json
import logging
import os
import sys
from pathlib import Path

import metafiles
import tables
from mmengine.logging import MMLogger
from rich.progress import track

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PARITY = 'tests/reference/parity_errors.json'


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--parity', metavar='LOG',
        help='output of the parity tests: take the errors of the reference files that '
        'it names from there')
    parser.add_argument(
        '--keep', action='store_true',
        help='measure only configs that the metafiles do not have yet')
    return parser.parse_args(argv)


def update_parity(log):
    """Errors by reference file, those in a log of the parity tests replaced."""
    errors = json.loads((ROOT / PARITY).read_text()) if (ROOT / PARITY).exists() else {}
    if log:
        found = metafiles.parity_errors(Path(log).read_text())
        if not found:
            raise InputError(f'{log} has no line "NAME [SHAPE]: worst relative error '
                             'NUMBER"; run pytest with -s')
        errors |= found
    return dict(sorted(errors.items()))


def make(measured, parity, root=ROOT):
    """Contents of all files that this tool makes, by path."""
    entries = metafiles.grid(root)
    files = {f'configs/{task}/metafile.yml': metafiles.metafile(
        task, entries, measured, root) for task in metafiles.TASKS}
    files['model-index.yml'] = metafiles.model_index()
    files[PARITY] = json.dumps(parity, indent=2) + '\n'
    files['README.md'] = tables.insert(
        (root / 'README.md').read_text(),
        tables.family_tables(
            entries, measured, parity, tables.count_peers(),
            tables.read_times(root)))
    return files


def main(argv=None):
    """Measure and write."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    try:
        if not (ROOT / 'README.md').is_file():  # as in a wheel
            raise InputError(f'{ROOT} has no README.md to write tables into. Run this '
                             'tool in a checkout of mm_efficient.')
        parity = update_parity(args.parity)
        measured = metafiles.read_measured(ROOT) if args.keep else {}
        entries = [entry for entry in metafiles.grid(ROOT)
                   if entry.config not in measured]
        for entry in track(entries, 'measuring'):
            measured[entry.config] = metafiles.measure(entry, ROOT)
        files = make(measured, parity)
    except (InputError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    for name, content in files.items():
        path = ROOT / name
        if not path.exists() or path.read_text() != content:
            draft = path.with_suffix('.tmp')
            draft.write_text(content)
            os.replace(draft, path)
            print(f'written {name}')


if __name__ == '__main__':
    main()
