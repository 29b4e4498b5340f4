"""tools/gpu_report.sh where there is no GPU."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'gpu_report.sh'


@pytest.mark.parametrize('parts, status, message', [
    ([], 1, 'finds no NVIDIA GPU here'),
    (['part1+part9'], 2, "unknown part 'part9'")])
def test_nothing_starts(tmp_path, parts, status, message):
    """Tests that are skipped would look like success."""
    environment = dict(os.environ, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(
        ['bash', str(SCRIPT), str(tmp_path / 'report'), *parts], env=environment,
        capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert message in done.stderr
    assert not (tmp_path / 'report').exists()
