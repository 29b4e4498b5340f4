import json

import pytest

from mm_efficient.errors import InputError
from mm_efficient.visualization.curves import choose_keys, draw_curves, read_run


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


def test_starts_are_joined(resumed):
    run = read_run(resumed)
    assert run.name == 'run'
    assert run.curves['loss'] == {1: 8., 2: 6., 3: 4., 4: 2.}
    assert run.curves['coco/bbox_mAP'] == {1: 0.1, 2: 0.3}
    assert run.curves['val/time'] == {1: 9., 2: 9.}
    assert run.axes['loss'] == 'iteration' and run.axes['coco/bbox_mAP'] == 'epoch'


def test_a_start_from_scratch_ends_what_was_before(resumed):
    write(resumed / '20260103_000000', [training(1, 7., epoch=1)])
    assert read_run(resumed).curves['loss'] == {1: 7.}


def test_moving_average(resumed):
    steps, values = read_run(resumed).smoothed('loss', 0.5)
    assert steps == [1, 2, 3, 4]
    # 8; (8/4 + 6/2) / (3/4); ...
    assert values == pytest.approx([8., 20 / 3, 36 / 7, 52 / 15])
    assert read_run(resumed).smoothed('loss', 0.)[1] == [8., 6., 4., 2.]


def test_keys(resumed):
    runs = [read_run(resumed)]
    assert choose_keys(runs) == ['loss', 'lr', 'coco/bbox_mAP']
    assert choose_keys(runs, ['coco*', 'loss']) == [
        'coco/bbox_mAP', 'coco/bbox_mAP_50', 'loss']
    with pytest.raises(InputError, match="no run has 'accuracy'; there are: loss"):
        choose_keys(runs, ['accuracy'])


def test_figure_shows_the_values(resumed, tmp_path):
    write(tmp_path / 'other', [training(10, 1.), {'mIoU': 3., 'step': 10}])
    runs = [read_run(resumed), read_run(tmp_path / 'other')]
    assert runs[1].axes['mIoU'] == 'iteration'  # trained by iterations
    figure = draw_curves(runs, ['loss', 'mIoU'], smooth=0.5)
    loss, miou = figure.axes
    assert [len(panel.lines) for panel in (loss, miou)] == [4, 2]
    assert list(loss.lines[0].get_ydata()) == [8., 6., 4., 2.]
    assert list(loss.lines[1].get_ydata())[-1] == pytest.approx(52 / 15)
    assert list(miou.lines[-1].get_xydata()[0]) == [10., 3.]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        'run', 'other']


def test_what_is_no_log(tmp_path):
    with pytest.raises(InputError, match='has no log of scalars'):
        read_run(tmp_path)
    path = write(tmp_path / 'a', [])
    with pytest.raises(InputError, match='holds no scalars yet'):
        read_run(path)
    path.write_text('{"loss": 1, "step": 1, "iter": 1}\nnonsense\n{"st')
    with pytest.raises(InputError, match='line 2, is no JSON object'):
        read_run(path)
    path.write_text('{"loss": 1, "step": 1, "iter": 1}\n{"lo')  # being written
    assert read_run(path).curves['loss'] == {1: 1.}
