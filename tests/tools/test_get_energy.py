import pytest


def test_table(tool, capsys):
    tool('analysis_tools/get_energy')(['ecoformer_pvt_b0'])
    rows = [line.split('│') for line in capsys.readouterr().out.splitlines()]
    rows = {cells[1].strip(): [float(cell) for cell in cells[2:6]]
            for cells in rows if len(cells) == 7}
    whole = rows.pop('ecoformer_pvt_b0, 224 x 224')
    assert whole == [0.535, 0.565, 2.489, 100]
    assert [sum(part) for part in zip(*rows.values())] == pytest.approx(whole, abs=0.2)
