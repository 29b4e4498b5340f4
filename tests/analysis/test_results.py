import csv
import itertools

import pytest

from mm_efficient.analysis.accuracy_plot import OTHERS, draw_rows
from mm_efficient.analysis.benchmark import Plan
from mm_efficient.analysis.results import (
    COLUMNS,
    make_rows,
    read_rows,
    reported_top1,
    settings,
    write_rows,
)
from mm_efficient.analysis.timing import Case, Timing
from mm_efficient.errors import InputError
from mm_efficient.weights import FAMILIES

WHERE = settings(Plan(()))


@pytest.fixture
def timings():
    """Two jobs, two rounds; the second model takes half to twice the time."""
    return [
        Timing(Case('a', batch=4), [[[1., 1., 4.], [2.]], [[3.], [3., 5.]]], 100., 0.),
        Timing(Case('b', batch=4), [[[2., 2., 2.], [2.]], [[1.5], [8.]]], 50., 1e-6)]


def test_statistics(timings):
    first, second = timings
    # Medians of the jobs: of 1 1 2 4 and of 3 3 5; means: 2 and 11 / 3
    assert first.median == (1.5 + 3) / 2 and first.mean == pytest.approx(17 / 6)
    assert first.throughput == pytest.approx(2 * 4 / 2.25) and first.passes == 4
    # Ratios of the medians of the rounds: 2, 1, 0.5 and 8 / 4
    assert second.ratios(first) == (1.5, 0.5, 2.)
    assert first.ratios(first) == (1., 1., 1.)


def test_rows(timings, tmp_path):
    plan = Plan(tuple(timing.case for timing in timings), jobs=2)
    first, second = make_rows(plan, timings, {'b': 80.})
    assert first['median_ms'] == 2250. and first['ms_per_image'] == 562.5
    assert first['images_per_s'] == pytest.approx(8 / 2.25)
    assert (second['ratio'], second['ratio_min'], second['ratio_max']) == (1.5, 0.5, 2.)
    assert first['top1_reported'] is None and second['top1_reported'] == 80.
    other = Timing(Case('a', batch=1), [[[1.], [1.]]] * 2, deviation=float('nan'))
    last = make_rows(plan, [*timings, other])[2]
    assert last['ratio'] == 1. and last['deviation'] is None  # ratio in its own group
    baseline = make_rows(Plan(plan.cases, baseline='b'), timings)
    assert [row['ratio'] for row in baseline] == [pytest.approx(0.75), 1.]

    write_rows(tmp_path / 'r.json', [first, second], settings(plan))
    rows, where = read_rows(tmp_path / 'r.json')
    assert rows == [first, second]
    assert where['jobs'] == 2 and where['hardware']
    write_rows(tmp_path / 'r.csv', rows, where)
    with open(tmp_path / 'r.csv', newline='') as file:
        read = list(csv.DictReader(file))
    assert float(read[1]['median_ms']) == second['median_ms']
    assert read[0]['top1_reported'] == ''
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('content', [
    None, 'no JSON', '[]', '{"results": [], "seed": 0}',
    '{"results": [{"model": "a"}], "settings": {}}'])
def test_what_holds_no_results(content, tmp_path):
    path = tmp_path / 'r.json'
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match='r.json holds no results .*--out has written'):
        read_rows(path)


def test_reported_accuracy():
    assert reported_top1('resnet50_8xb32_in1k') == 76.55
    assert reported_top1('soft_small_norm') == 82.4
    assert reported_top1('lowformer_b2') is None  # has no published classifier
    assert reported_top1('timm/resnet50') is None


# ------------------------------------------------------------------------- the plot


def make_row(model, ms, accuracy, mode='eager', size=224):
    known = dict(model=model, mode=mode, dtype='fp32', batch=1, height=size, width=size,
                 ms_per_image=ms, top1_reported=accuracy)
    return dict.fromkeys(COLUMNS) | known


def offsets(axes):
    """Points of a plot by what the legend calls them."""
    return {points.get_label(): points.get_offsets().tolist()
            for points in axes.collections}


def test_points_by_family_or_mode():
    rows = [make_row('resnet50', 90., 76.), make_row('soft_tiny', 60., 79.),
            make_row('soft_small', 110., 82.), make_row('lowformer_b2', 80., None)]
    axes, = draw_rows(rows, WHERE).axes
    assert offsets(axes) == {'SOFT': [[60., 79.], [110., 82.]], OTHERS: [[90., 76.]]}
    rows += [make_row('soft_tiny', 50., 79., 'compile'),
             make_row('b', 1., 70., size=96)]
    axes, other = draw_rows(rows, WHERE).axes
    assert offsets(axes) == {'eager fp32': [[90., 76.], [60., 79.], [110., 82.]],
                             'compile fp32': [[50., 79.]]}
    assert offsets(other) == {'eager fp32': [[1., 70.]]}
    # A model is named once, at its fastest point
    named = {text.get_text(): text.xy for text in axes.texts if text.get_text()}
    assert named == {'soft_tiny': (50., 79.), 'resnet50': (90., 76.),
                     'soft_small': (110., 82.)}


def test_names_do_not_cover_each_other():
    variants = [variant for family in FAMILIES for variant in family.variants]
    rows = [make_row(variant, 50 * 1.08**i, 76 + i // 4)
            for i, variant in enumerate(variants)]
    figure = draw_rows(rows, WHERE)
    figure.draw_without_rendering()
    axes, = figure.axes
    names = [text for text in axes.texts if text.get_text()]
    assert {text.get_text() for text in names} == set(variants)
    boxes = [text.get_window_extent() for text in names]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(x, y) for box in boxes
                   for points in axes.collections
                   for x, y in axes.transData.transform(points.get_offsets()))
