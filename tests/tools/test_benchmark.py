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
    args = [model, '--mode', 'eager', 'channels_last', '--size', '64', '64x96',
            '--batch', '2', '--iterations', '4', '--rounds', '2', '--warmup', '1']
    tool([*args, '--out', 'r.csv', 'r.json', '--plot', 'p.png', '--top1',
          f'{model}=57.9'])
    assert torch.get_num_threads() == threads
    rows = json.loads((tmp_path / 'r.json').read_text())['results']
    assert [(r['mode'], r['height'], r['width']) for r in rows] == [
        (mode, 64, width) for width in (64, 96) for mode in ('eager', 'channels_last')]
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
    assert table[0][6] == table[2][6] == '1.000'  # every size has its own baseline
    assert Image.open('p.png').size == (1800, 600)  # a panel per size

    assert 'there is no model' in fails(tool, 'resnet5')
    assert 'has to end with' in fails(tool, model, '--out', 'r.txt')
    assert 'reports no accuracy' in fails(tool, *args, '--size', '64', '--plot',
                                          'q.png')
    assert '--top1 timm/mobile: expected one of the models' in fails(
        tool, *args, '--top1', 'timm/mobile=57.9')
    assert 'cannot be run on images of 1 x 3 x 16 x 16 on cpu: ValueError' in fails(
        tool, 'swiftformer_xs', '--size', '16')
    for wrong in ('nan', '-3', 'long'):
        with pytest.raises(SystemExit):
            tool([model, '--max-seconds', wrong])
        assert f"'{wrong}' is not a positive number" in capsys.readouterr().err
