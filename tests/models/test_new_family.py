"""A new family is one folder in models/, its configs, its page and its references.

The toy family of ``toy_family/`` is laid into a copy of the checkout, in which nothing
else is changed, and goes through everything that works for all families.
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / 'toy_family'
COPIED = ('mm_efficient', 'configs', 'tools', 'docs', 'tests', 'README.md',
          'pyproject.toml', 'model-index.yml')


def test_one_folder_is_enough(tmp_path):
    ignored = shutil.ignore_patterns('__pycache__', '.mim', 'toy_family')
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(TOY / 'models', tmp_path / 'mm_efficient/models',
                    dirs_exist_ok=True)
    for part in ('configs', 'docs', 'tests'):
        shutil.copytree(TOY / part, tmp_path / part, dirs_exist_ok=True)
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-n0', '-v', '-p', 'no:cacheprovider',
         'tests/tools/check_toynet.py', 'tests/models/test_contract.py',
         'tests/configs', '-k', 'ToyNet or toynet or grid or families'],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(tmp_path), 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stdout[-9000:] + result.stderr[-2000:]
    passed = re.findall(r'^(tests/\S+?)::\S+ PASSED', result.stdout, re.MULTILINE)
    assert passed.count('tests/tools/check_toynet.py') == 8
    assert passed.count('tests/models/test_contract.py') > 30
    assert len(set(passed)) > 4
