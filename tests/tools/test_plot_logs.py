import json

import pytest
from loading import load_module
from PIL import Image

from mm_efficient.errors import ExecutionError, InputError

tool = load_module('visualization/plot_logs')


def write(folder, records):
    path = folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(f'{json.dumps(record)}\n' for record in records))
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
    assert curves['loss', 'iteration'] == {1: 8., 2: 6., 3: 4., 4: 2.}
    assert curves['coco/bbox_mAP', 'epoch'] == {1: 0.1, 2: 0.3}
    assert curves['time', 'iteration'] == {1: 1., 2: 1., 3: 1., 4: 1.}
    assert {name for name, _ in curves} == {
        'loss', 'lr', 'time', 'coco/bbox_mAP', 'coco/bbox_mAP_50'}


def test_a_run_from_scratch_replaces_older_ones(resumed):
    write(resumed / '20260103_000000', [training(1, 7., epoch=1)])
    assert tool.read_curves(resumed)['loss', 'iteration'] == {1: 7.}


def test_keys(resumed):
    runs = dict(run=tool.read_curves(resumed))
    keys = [('loss', 'iteration'), ('lr', 'iteration'), ('coco/bbox_mAP', 'epoch')]
    assert tool.select_keys(runs, []) == keys
    assert tool.select_keys(runs, ['coco*', 'loss', 'l*s']) == [
        keys[2], ('coco/bbox_mAP_50', 'epoch'), keys[0]]
    with pytest.raises(InputError, match="no run has all of .*; expected .* loss, lr"):
        tool.select_keys(runs, ['loss', 'accuracy'])
    other = {('other', 'iteration'): {1: 1.}}  # has none of the default quantities
    assert tool.select_keys(dict(run=other), []) == list(other)


def test_figure_shows_the_values(resumed, tmp_path):
    write(tmp_path / 'other' / '20260101_000000', [
        training(10, 1.), {'mIoU': 3., 'time': 9., 'step': 10}])
    runs = dict(a=tool.read_curves(resumed),
                b=tool.read_curves(tmp_path / 'other'))
    assert runs['b']['time', 'iteration'] == {10: 1.}
    figure = tool.draw(runs, [('loss', 'iteration'), ('mIoU', 'iteration')])
    loss, miou = figure.axes
    assert [len(panel.lines) for panel in (loss, miou)] == [2, 1]
    assert loss.lines[0].get_xydata().tolist() == [[1, 8], [2, 6], [3, 4], [4, 2]]
    assert miou.lines[0].get_xydata().tolist() == [[10., 3.]]
    assert miou.lines[0].get_color() == loss.lines[1].get_color()
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        'a: 2', 'b: 1']
    assert (loss.get_ylabel(), loss.get_xlabel()) == ('loss', 'iteration')


def test_files_without_scalars(tmp_path):
    with pytest.raises(ExecutionError, match='Expected a work dir'):
        tool.read_curves(tmp_path)
    path = write(tmp_path / 'a', [])
    with pytest.raises(InputError, match='has no logged values'):
        tool.read_curves(path)
    for line in ('nonsense', '3', '{"loss": 1}'):
        path.write_text(f'{{"loss": 1, "step": 1, "iter": 1}}\n{line}\n')
        with pytest.raises(ExecutionError, match='scalars.json cannot be read'):
            tool.read_curves(path)
    # The last line is still being written
    path.write_text('{"loss": 1, "step": 1, "iter": 1}\n{"lo')
    assert tool.read_curves(path)['loss', 'iteration'] == {1: 1.}


def test_command_line(tmp_path, fails):
    write(tmp_path / 'run' / '20260101_000000', [dict(loss=1., iter=1, step=1)])
    run, out = str(tmp_path / 'run'), tmp_path / 'c.png'
    tool.main([run, '--out', str(out), '--names', 'mine'])
    assert Image.open(out).size[0] > 0
    assert 'no run has all of x' in fails(tool.main, run, '--keys', 'x')
    for wrong in ([run, run], [run, '--names', 'a', 'b']):
        with pytest.raises(SystemExit) as stop:
            tool.main(wrong)
        assert stop.value.code == 2
