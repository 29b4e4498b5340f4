import csv
import json

import pytest
import torch
from conftest import load_tool
from PIL import Image


def test_table_files_and_plot(tmp_path, monkeypatch, capsys, fails):
    monkeypatch.chdir(tmp_path)
    tool = load_tool('analysis_tools/benchmark')
    threads = torch.get_num_threads()
    model = 'timm/mobilenetv3_small_050'
    args = [model, '--backend', 'eager', 'channels_last', '--shape', '64', '64x96',
            '--batch-size', '2', '--iterations', '4', '--rounds', '2', '--warmup', '1']
    tool([*args, '--out', 'r.csv', 'r.json', '--plot', 'p.png', '--top1',
          f'{model}=57.9'])
    assert torch.get_num_threads() == threads
    rows = json.loads((tmp_path / 'r.json').read_text())['results']
    assert [(r['backend'], r['height'], r['width']) for r in rows] == [
        (backend, 64, width) for width in (64, 96)
        for backend in ('eager', 'channels_last')]
    assert all(row['top1_reported'] == 57.9 for row in rows)
    with open('r.csv', newline='') as file:
        assert [float(row['median_ms']) for row in csv.DictReader(file)] == [
            row['median_ms'] for row in rows]
    table = [[cell.strip() for cell in line.strip('│').split('│')]
             for line in capsys.readouterr().out.splitlines() if '2 │ 64x' in line]
    for cells, row in zip(table, rows, strict=True):
        assert float(cells[4]) == float(f'{row["median_ms"]:.4g}')
        assert float(cells[6]) == round(row['ratio'], 3)
        assert cells[-1] == '4'
    assert table[0][6] == table[2][6] == '1.000'  # a baseline per shape
    assert Image.open('p.png').size == (900, 600)

    tool(['--from', 'r.json', '--top1', f'{model}=60', '--out', 'again.json'])
    again = json.loads((tmp_path / 'again.json').read_text())['results']
    assert again == [row | dict(top1_reported=60.) for row in rows]

    assert 'there is no model' in fails(tool, 'resnet5')
    assert 'has to end with' in fails(tool, model, '--out', 'r.txt')
    assert 'reports no accuracy' in fails(tool, *args, '--plot', 'q.png')
    assert '--top1 timm/mobile: expected one of the timed models' in fails(
        tool, *args, '--top1', 'timm/mobile=57.9')
    assert 'on 1 x 3 x 16 x 16 images on cpu: ValueError' in fails(
        tool, 'swiftformer_xs', '--shape', '16')
    assert 'r.csv is not a result file' in fails(tool, '--from', 'r.csv')


@pytest.mark.parametrize('args, message', [
    (['--max-seconds', 'nan'], "invalid positive float value: 'nan'"),
    (['--max-seconds', '-3'], "invalid positive float value: '-3'"),
    (['--rounds', '0'], "invalid positive int value: '0'"),
    (['--top1', 'soft_tiny'], "'soft_tiny' is not MODEL=VALUE"),
    (['--shape', '0'], "'0' is not an image shape"),
    (['--from', 'r.json'], 'expected either models to time, or --from FILE')])
def test_arguments(args, message, capsys):
    with pytest.raises(SystemExit):
        load_tool('analysis_tools/benchmark')(['soft_tiny', *args])
    assert message in capsys.readouterr().err
