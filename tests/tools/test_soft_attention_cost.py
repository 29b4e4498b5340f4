import torch

from mm_efficient.analysis.complexity import count
from mm_efficient.models.soft.backbone import SOFT


def test_table(tool, monkeypatch, capsys):
    main = tool('analysis_tools/soft_attention_cost')
    monkeypatch.setitem(main.__globals__, 'in_own_process', lambda run, *a: run(*a))
    monkeypatch.setitem(main.__globals__, 'ENOUGH_SECONDS', 0)
    main(['--size', '256x448', '--forward-only', '--skip-reference'])
    rows = [[cell.strip() for cell in line.split('│')[1:-1]]
            for line in capsys.readouterr().out.splitlines() if '│' in line]
    assert [row[:2] for row in rows] == [['224', 'fast'], ['None', 'fast']]
    flops = []
    for pretrain_size in (224, None):
        with torch.device('meta'):
            model = SOFT('tiny', out_indices=(0, 1, 2, 3), pretrain_size=pretrain_size)
            flops.append(count(model, torch.empty(1, 3, 256, 448)).flops / 1e9)
    assert [row[2] for row in rows] == [f'{value:.1f}' for value in flops]
    assert flops[0] < 0.95 * flops[1]  # landmarks are held at their number
    first, second = (float(row[3]) for row in rows)
    ratio = float(rows[1][4])
    assert first > 0 and rows[0][4] == '1.00'
    # What is printed is rounded to 0.01
    assert abs(ratio * first - second) <= 0.006 * (1 + ratio + first)
