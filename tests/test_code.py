"""The code itself: style, types, and imports that go down only."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = dict(ruff=['check', '.'], mypy=[], **{'lint-imports': ['--no-logo']})


@pytest.mark.parametrize('tool', CHECKS)
def test_code_passes(tool):
    command = Path(sys.executable).with_name(tool)
    result = subprocess.run([command, *CHECKS[tool]], cwd=ROOT, capture_output=True,
                            text=True)
    assert result.returncode == 0, result.stdout + result.stderr

