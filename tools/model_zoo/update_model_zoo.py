r"""Generate model-index.yml, the metafiles and the tables of docs/model_zoo.md.

Measures parameters, FLOPs and activations of every config's model (two to three
minutes), and adds what the authors report (mm_efficient/models/*/weights.py) and the
latencies that benchmark.py has written to docs/benchmark/ (see docs/reproducing.md).

    update_model_zoo.py --keep          # after adding configs, results or a family
    pytest tests/models -n0 -s -m 'slow or not slow' -k matches_the_published \
        | tee parity.log
    update_model_zoo.py --parity parity.log
"""
import argparse
import json
import logging
from pathlib import Path

import metafiles
import tables
from mmengine.logging import MMLogger
from rich.progress import track

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError, error_line
from mm_efficient.files import whole_file

ROOT = Path(__file__).resolve().parents[2]
PARITY = 'tests/reference/parity_errors.json'


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--parity', metavar='LOG',
        help='output of the parity tests, with new errors of some reference files')
    parser.add_argument(
        '--keep', action='store_true',
        help='measure only configs that are not in the metafiles yet')
    return parser.parse_args(argv)


def update_parity(log):
    """Errors by reference file, updated from a log of the parity tests."""
    errors = json.loads((ROOT / PARITY).read_text()) if (ROOT / PARITY).exists() else {}
    if log:
        found = metafiles.parity_errors(Path(log).read_text())
        if not found:
            raise InputError(f'{log} has no line "NAME [SHAPE]: worst relative error '
                             'NUMBER"; run pytest with -s.')
        errors |= found
    return dict(sorted(errors.items()))


def generate(measured, parity, root=ROOT):
    """Content of all generated files, by path."""
    entries = metafiles.find_entries(root)
    files = {f'configs/{task}/metafile.yml': metafiles.metafile(
        task, entries, measured, root) for task in metafiles.TASKS}
    files['model-index.yml'] = metafiles.model_index()
    files[PARITY] = json.dumps(parity, indent=2) + '\n'
    files[tables.PAGE] = tables.insert(
        (root / tables.PAGE).read_text(),
        tables.family_tables(entries, measured, parity, tables.count_baselines(),
                             tables.read_latencies(root)))
    return files


def main(argv=None):
    """Measure and write."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    with error_line():
        if not (ROOT / tables.PAGE).is_file():  # as in a wheel
            raise InputError(f'{ROOT} has no {tables.PAGE} to write tables into; run '
                             'this tool in a checkout of mm_efficient.')
        parity = update_parity(args.parity)
        measured = metafiles.read_measured(ROOT) if args.keep else {}
        entries = [entry for entry in metafiles.find_entries(ROOT)
                   if entry.config not in measured]
        for entry in track(entries, 'measuring'):
            measured[entry.config] = metafiles.measure(entry, ROOT)
        for name, content in generate(measured, parity).items():
            path = ROOT / name
            if not path.exists() or path.read_text() != content:
                with whole_file(path) as draft:
                    draft.write_text(content)
                print(f'written: {name}')


if __name__ == '__main__':
    main()
