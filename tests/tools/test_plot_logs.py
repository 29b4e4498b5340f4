import json

import pytest
from conftest import load_module
from PIL import Image

from mm_efficient.errors import InputError

tool = load_module('visualization/plot_logs')


def write(folder, records):
    path = folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(json.dumps(record) for record in records))
    return path


def training(step, loss, **more):
    return dict(loss=loss, lr=0.1, time=1., iter=step, step=step, **more)


@pytest.fixture
def resumed(tmp_path):
    """Two epochs of two iterations, interrupted in the second and resumed."""
    folder = tmp_path / 'run'
    write(folder / '20260101_000000', [
        training(1, 8., epoch=1), training(2, 6., epoch=1),
        {'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_50': 0.2, 'time': 9., 'step': 1},
        training(3, 5., epoch=2), training(4, 99., epoch=2)])
    write(folder / '20260102_000000', [
        training(3, 4., epoch=2), training(4, 2., epoch=2),
        {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_50': 0.5, 'time': 9., 'step': 2}])
    return folder


def test_resumed_runs_are_joined(resumed):
    curves = tool.read_curves(resumed)
    assert curves['loss'] == ({1: 8., 2: 6., 3: 4., 4: 2.}, 'iteration', False)
    assert curves['coco/bbox_mAP'] == ({1: 0.1, 2: 0.3}, 'epoch', True)
    assert curves['val/time'].values == {1: 9., 2: 9.}


def test_a_run_from_scratch_replaces_older_ones(resumed):
    write(resumed / '20260103_000000', [training(1, 7., epoch=1)])
    assert tool.read_curves(resumed)['loss'].values == {1: 7.}


def test_keys(resumed):
    trainings = dict(run=tool.read_curves(resumed))
    assert tool.select_keys(trainings, []) == ['loss', 'lr', 'coco/bbox_mAP']
    assert tool.select_keys(trainings, ['coco*', 'loss']) == [
        'coco/bbox_mAP', 'coco/bbox_mAP_50', 'loss']
    with pytest.raises(InputError, match="has 'accuracy'; expected one of loss, lr"):
        tool.select_keys(trainings, ['accuracy'])


def test_figure_shows_the_values(resumed, tmp_path):
    write(tmp_path / 'other', [training(10, 1.), {'mIoU': 3., 'step': 10}])
    trainings = dict(a=tool.read_curves(resumed),
                     b=tool.read_curves(tmp_path / 'other'))
    assert trainings['b']['mIoU'].unit == 'iteration'  # no epochs in this log
    figure = tool.draw(trainings, ['loss', 'mIoU'], smooth=0.5)
    loss, miou = figure.axes
    assert [len(panel.lines) for panel in (loss, miou)] == [4, 1]
    assert list(loss.lines[0].get_ydata()) == [8., 6., 4., 2.]
    # 8; (8/4 + 6/2) / (3/4); ...
    assert list(loss.lines[1].get_ydata()) == pytest.approx(
        [8., 20 / 3, 36 / 7, 52 / 15])
    assert list(miou.lines[0].get_xydata()[0]) == [10., 3.]  # metrics are not smoothed
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ['a', 'b']


def test_files_without_scalars(tmp_path):
    with pytest.raises(InputError, match='expected a work dir'):
        tool.read_curves(tmp_path)
    path = write(tmp_path / 'a', [])
    with pytest.raises(InputError, match='has no logged values'):
        tool.read_curves(path)
    for line in ('nonsense', '3', '{"loss": 1}'):
        path.write_text(f'{{"loss": 1, "step": 1, "iter": 1}}\n{line}\n{{"st')
        with pytest.raises(InputError, match='line 2: expected a JSON object'):
            tool.read_curves(path)
    for line in ('{"lo', '3', '{"loss": 1}'):  # the last line is still being written
        path.write_text(f'{{"loss": 1, "step": 1, "iter": 1}}\n{line}')
        assert tool.read_curves(path)['loss'].values == {1: 1.}


def test_command_line(tmp_path, fails, capsys):
    write(tmp_path / 'run' / '20260101_000000', [dict(loss=1 / i, iter=i, step=i)
                                                 for i in range(1, 9)])
    run, out = str(tmp_path / 'run'), tmp_path / 'c.png'
    tool.main([run, '--out', str(out), '--names', 'mine'])
    row = next(line for line in capsys.readouterr().out.splitlines() if 'mine' in line)
    assert [cell.strip() for cell in row.strip('│').split('│')] == [
        'mine', 'loss', '0.125', 'iteration 8', '0.125', '1']
    assert Image.open(out).size[0] > 0
    assert "no training has 'x'" in fails(tool.main, run, '--keys', 'x')
    for wrong in ([run, run], [run, '--names', 'a', 'b'], [run, '--smooth', '1']):
        with pytest.raises(SystemExit) as stop:
            tool.main(wrong)
        assert stop.value.code == 2
