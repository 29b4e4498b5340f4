import csv
import json
import sys

import pytest
import torch
from PIL import Image


def test_table_files_and_plot(tool, tmp_path, monkeypatch, capsys, fails):
    monkeypatch.chdir(tmp_path)
    main = tool('analysis_tools/benchmark')
    threads = torch.get_num_threads()
    model = 'timm/mobilenetv3_small_050'
    args = [model, '--backend', 'eager', 'channels_last', '--shape', '64', '64x96',
            '--batch-size', '2', '--iterations', '4', '--rounds', '2', '--warmup', '1']
    main([*args, '--out', 'r.csv', 'r.json'])
    assert torch.get_num_threads() == threads
    rows = json.loads((tmp_path / 'r.json').read_text())['results']
    assert [(r['backend'], r['height'], r['width']) for r in rows] == [
        (backend, 64, width) for width in (64, 96)
        for backend in ('eager', 'channels_last')]
    with open('r.csv', newline='') as file:
        assert [float(row['median_ms']) for row in csv.DictReader(file)] == [
            row['median_ms'] for row in rows]
    table = [[cell.strip() for cell in line.strip('│').split('│')]
             for line in capsys.readouterr().out.splitlines() if '2 │ 64x' in line]
    for cells, row in zip(table, rows, strict=True):
        assert float(cells[5]) == float(f'{row["median_ms"]:.4g}')
        assert float(cells[7]) == round(row['ratio'], 3)
        assert cells[-1] == '4'
    assert table[0][7] == table[2][7] == '1.000'  # a baseline per shape

    assert 'reports no accuracy' in fails(main, '--from', 'r.json', '--plot', 'p.png')
    content = json.loads((tmp_path / 'r.json').read_text())
    for row in content['results']:
        row['top1_reported'] = 57.9
    (tmp_path / 'r.json').write_text(json.dumps(content))
    main(['--from', 'r.json', '--out', 'again.json', '--plot', 'p.png'])
    assert json.loads((tmp_path / 'again.json').read_text()) == content
    assert Image.open('p.png').size == (900, 600)

    assert 'there is no model' in fails(main, 'resnet5')
    assert 'has to end with' in fails(main, model, '--out', 'r.txt')
    assert 'reports no accuracy' in fails(main, *args, '--plot', 'q.png')
    assert 'on 1 x 3 x 16 x 16 images on cpu: ValueError' in fails(
        main, 'swiftformer_xs', '--shape', '16')
    assert 'r.csv is not a result file' in fails(main, '--from', 'r.csv')
    assert 'would be overwritten' in fails(main, '--from', 'r.json', '--out', 'r.json')
    (tmp_path / 'other.jsonl').write_bytes(b'\xff')
    assert 'other.jsonl is not a result file' in fails(
        main, *args, '--out', 'other.jsonl')
    main(['--from', 'r.json', '--out', 'R.MD'])
    assert (tmp_path / 'R.MD').read_text().startswith('| model |')


MODELS = """
from torch import nn

class Picky(nn.Conv2d):
    def forward(self, x):
        if not x.is_contiguous():
            raise ValueError('another memory format')
        return super().forward(x)

def good():
    return nn.Conv2d(3, 8, 3)

def picky():
    return Picky(3, 4, 3)
"""


def test_models_one_by_one(tool, tmp_path, monkeypatch, capsys, fails):
    """What fails is left out; the rest is in the files, each run once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    (tmp_path / 'm.py').write_text(MODELS)
    assert 'runs left out: 1; see above' in fails(
        tool('analysis_tools/benchmark'), 'm.py:picky', 'm.py:good', '--baseline',
        'm.py:good', '--apart', '--backend', 'eager', 'channels_last', '--shape', '16',
        '--iterations', '2', '--rounds', '2', '--warmup', '1',
        '--out', 'r.json', 'r.jsonl', 'r.md')
    printed = capsys.readouterr()
    assert 'left out: m.py:picky cannot run with backend channels_last' in printed.err
    assert 'written: r.md' in printed.out
    rows = json.loads((tmp_path / 'r.json').read_text())['results']
    assert [(row['model'], row['backend']) for row in rows] == [
        ('m.py:good', 'eager'), ('m.py:picky', 'eager'), ('m.py:good', 'channels_last')]
    lines = (tmp_path / 'r.jsonl').read_text().splitlines()
    assert [json.loads(line)['model'] for line in lines] == [
        'm.py:good', 'm.py:picky', *3 * ['m.py:good']]
    assert '| `m.py:picky` |' in (tmp_path / 'r.md').read_text()


@pytest.mark.parametrize('args, message', [
    (['--apart'], '--apart needs a --baseline'),
    (['--max-seconds', 'nan'], "invalid positive float value: 'nan'"),
    (['--max-seconds', '-3'], "invalid positive float value: '-3'"),
    (['--rounds', '0'], "invalid positive int value: '0'"),
    (['--shape', '0'], "'0' is not an image shape"),
    (['--from', 'r.json'], 'expected either models to time, or --from FILE')])
def test_arguments(tool, args, message, capsys):
    with pytest.raises(SystemExit):
        tool('analysis_tools/benchmark')(['soft_tiny', *args])
    assert message in capsys.readouterr().err
