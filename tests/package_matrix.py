"""Run a part of the tests with several sets of packages; write docs/package_matrix.md.

Each set is an environment of its own in FOLDER, made by uv; the log of its tests lies
beside it. The page keeps the rows of the sets that were not run.
"""
import argparse
import json
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'package_matrix.md'
LATEST = ['-e', f'{ROOT}[all,dev]', 'mmcv-lite<2.2', 'pip']
PINNED = ['--require-hashes', '-r', f'{ROOT}/requirements/mmlab.txt']
ONEDL = ['--require-hashes', '-r', f'{ROOT}/requirements/onedl.txt']
# The lower bounds in setup.py, and the NumPy of their time
OLDEST = [*LATEST, 'torch==2.1.0', 'torchvision==0.16.0', 'numpy==1.26.0',
          'timm==1.0.3', 'mmengine==0.10.4']
COMPILED = ['--no-build-isolation', '--no-deps', '--no-binary', 'mmcv', 'mmcv==2.1.0']
# Name -> Python, and what is installed one after the other
ENVIRONMENTS = {
    'pinned': ('3.11', [PINNED]),
    'OneDL': ('3.11', [ONEDL]),
    'oldest': ('3.10', [OLDEST]),
    'newest': ('3.12', [LATEST]),
    'Python 3.13': ('3.13', [PINNED]),
    'compiled mmcv': ('3.11', [PINNED, COMPILED]),
}
PACKAGES = ('torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg',
            'mmpretrain', 'timm')
# A wheel; checkpoints that resume and load; every family; a training and a prediction
# of every host; converted weights; exports
TESTS = [
    'tests/test_compat.py',
    'tests/test_packaging.py::test_wheel_works_without_a_checkout',
    'tests/models/test_contract.py',
    'tests/configs/test_training.py::test_config_trains_and_evaluates[cls/lowformer_b0_300e]',
    'tests/configs/test_training.py::test_config_trains_and_evaluates[det/soft_tiny_maskrcnn_1x]',
    'tests/configs/test_training.py::test_config_trains_and_evaluates[seg/reduceformer_b1_upernet_160k]',
    'tests/runs/test_resume.py::test_loss_curve[cls-0]',
    'tests/weights/test_conversion.py',
    'tests/weights/test_convert_tool.py',
    'tests/weights/test_unpickling.py',
    'tests/tools/test_infer.py::test_same_as_tools_test',
    'tests/deploy/test_exporting.py::test_parity_with_pytorch',
]
SLOW = [f'tests/models/test_contract.py::{test}[{family}'
        for test in ('test_exports_with_dynamic_size', 'test_compiles_in_one_graph')
        for family in ('SOFT', 'Eco', 'Reduce', 'Swift')]  # LowFormer's remain


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, metavar='FOLDER')
    parser.add_argument('names', nargs='*', metavar='NAME',
                        help=f'sets of packages: {", ".join(ENVIRONMENTS)}')
    args = parser.parse_args()
    if unknown := set(args.names) - set(ENVIRONMENTS):
        parser.error(f'expected names among {[*ENVIRONMENTS]}, got {unknown}')
    return args


def make(folder, version, installs):
    """The Python of an environment, made unless it is there."""
    python = folder / 'bin' / 'python'
    if not (folder / 'complete').exists():
        subprocess.run(['uv', 'venv', '--clear', '--python', version, folder],
                       check=True)
        for packages in [*installs, ['--no-deps', '--no-build-isolation', '-e', ROOT]]:
            if packages is COMPILED:
                subprocess.run(['uv', 'pip', 'uninstall', '--python', python,
                                'mmcv-lite'], check=True)
            subprocess.run(['uv', 'pip', 'install', '--python', python, *packages],
                           env={**os.environ, 'MMCV_WITH_OPS': '1'}, check=True)
        (folder / 'complete').touch()
    return python


def run_tests(python, log):
    """Outcome in words: what pytest counts, and which tests fail."""
    command = [python, '-m', 'pytest', '-n0', '-q', '-p', 'no:cacheprovider', *TESTS,
               *(f'--deselect={test}' for test in SLOW)]
    environment = {**os.environ, 'VIRTUAL_ENV': str(python.parents[1]), 'PATH':
                   os.pathsep.join([str(python.parent), os.environ['PATH']])}
    with open(log, 'w') as file:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=file,
                       stderr=subprocess.STDOUT)
    text = log.read_text()
    # PyTorch and Triton may print after pytest's last line
    last = re.findall(r'^.* in [\d.]+s\b', text, re.M)[-1:]
    counts = re.findall(r'\d+ (?:passed|skipped|failed|errors?)\b', ''.join(last))
    failed = re.findall(r'^(?:FAILED|ERROR) \S+::(\w+)', text, re.M)
    return ', '.join(counts), failed


def versions(python):
    """Releases of :data:`PACKAGES`, as they tell themselves."""
    code = (f'import importlib, json; print(json.dumps([importlib.import_module(name)'
            f'.__version__.partition("+")[0] for name in {PACKAGES}]))')
    done = subprocess.run([python, '-Wignore', '-c', 'import mm_efficient; ' + code],
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows():
    """Rows of the page by their first cell."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {line.split('|')[1].strip(): line for line in lines
            if line.startswith('| ') and line.split('|')[1].strip() in ENVIRONMENTS}


def write_page(table):
    head = ['packages', 'Python', *PACKAGES, 'tests']
    lines = [
        '# Tested packages', '',
        'Written by `tests/package_matrix.py`, which makes an environment of every row '
        'and runs a part of the tests in it:', 'a wheel, checkpoints that resume and '
        'load, every family of backbones, a training and a prediction of every host,',
        'converted weights and exports. `pinned` and `OneDL` pass the whole suite.', '',
        f'| {" | ".join(head)} |', f'|{"---|" * len(head)}',
        *(table[name] for name in ENVIRONMENTS if name in table)]
    PAGE.write_text('\n'.join(lines) + '\n')


def main():
    args = parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or ENVIRONMENTS:
        version, installs = ENVIRONMENTS[name]
        folder = args.folder.absolute() / name.replace(' ', '-')
        python = make(folder, version, installs)
        counts, failed = run_tests(python, folder.with_name(f'{folder.name}.log'))
        print(name, counts, *failed, sep='\n  ')
        cells = [name, version, *versions(python), counts]
        write_page({**rows(), name: f'| {" | ".join(cells)} |'})


if __name__ == '__main__':
    main()
