import pytest

from mm_efficient.analysis.models import complexity, find_model


@pytest.fixture(scope='module')
def get_flops(tool):
    return tool('analysis_tools/get_flops')


def test_table(get_flops, capsys):
    get_flops(['soft_tiny', 'resnet18', '--shape', '96x64', '--per-module', '2'])
    rows = {cells[1].strip(): [float(cell) for cell in cells[2:6]]
            for cells in (line.split('│') for line in
                          capsys.readouterr().out.splitlines())
            if len(cells) == 7}
    for name in ('soft_tiny', 'resnet18'):
        cost = complexity(find_model(name), (96, 64))
        assert rows[f'{name}, 96 x 64'] == pytest.approx(
            [cost.parameters / 1e6, cost.macs / 1e9, 2 * cost.macs / 1e9,
             cost.activations / 1e6], abs=0.005)
    assert rows['backbone'] == pytest.approx(
        [sum(values) for values in zip(rows['backbone.stem'], rows['backbone.stages'],
                                       rows['backbone.norm'])], abs=0.02)
    assert 'layer1.0' in rows and 'backbone.stages.0' not in rows


def test_errors(get_flops, fails):
    assert 'resnet1899' in fails(get_flops, 'resnet1899')
    with pytest.raises(SystemExit):
        get_flops(['resnet18', '--shape', '0'])
