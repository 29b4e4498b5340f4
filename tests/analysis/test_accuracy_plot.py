import itertools

from mm_efficient.analysis.accuracy_plot import OTHERS, plot_accuracy
from mm_efficient.analysis.benchmark import COLUMNS
from mm_efficient.weights import FAMILIES

SETTINGS = dict(device='cpu', threads=1, hardware='a CPU')


def make_row(model, ms, accuracy, backend='eager', size=224):
    known = dict(model=model, backend=backend, dtype='fp32', batch_size=1, height=size,
                 width=size, median_ms=ms, top1_reported=accuracy)
    return dict.fromkeys(COLUMNS) | known


def offsets(axes):
    """Points of a plot by their name in the legend."""
    return {points.get_label(): points.get_offsets().tolist()
            for points in axes.collections}


def test_points_by_family_or_setting():
    rows = [make_row('resnet50', 90., 76.), make_row('soft_tiny', 60., 79.),
            make_row('soft_small', 110., 82.), make_row('lowformer_b2', 80., None)]
    axes, = plot_accuracy(rows, SETTINGS).axes
    assert offsets(axes) == {'SOFT': [[60., 79.], [110., 82.]], OTHERS: [[90., 76.]]}
    assert axes.get_title() == 'eager fp32, batch size 1, 224 x 224'
    rows += [make_row('soft_tiny', 50., 79., 'compile'),
             make_row('b', 40., 78., size=96)]
    axes, = plot_accuracy(rows, SETTINGS).axes
    assert offsets(axes) == {
        'eager fp32, batch size 1, 224 x 224': [[90., 76.], [60., 79.], [110., 82.]],
        'compile fp32, batch size 1, 224 x 224': [[50., 79.]],
        'eager fp32, batch size 1, 96 x 96': [[40., 78.]]}
    # A model is named once, at its fastest point
    named = {text.get_text(): text.xy for text in axes.texts if text.get_text()}
    assert named == {'soft_tiny': (50., 79.), 'resnet50': (90., 76.),
                     'soft_small': (110., 82.), 'b': (40., 78.)}


def test_labels_do_not_cover_each_other():
    variants = [variant for family in FAMILIES for variant in family.variants]
    rows = [make_row(variant, 50 * 1.08**i, 76 + i // 4)
            for i, variant in enumerate(variants)]
    figure = plot_accuracy(rows, SETTINGS)
    figure.draw_without_rendering()
    axes, = figure.axes
    labels = [text for text in axes.texts if text.get_text()]
    assert {text.get_text() for text in labels} == set(variants)
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not any(box.contains(x, y) for box in boxes
                   for points in axes.collections
                   for x, y in axes.transData.transform(points.get_offsets()))
