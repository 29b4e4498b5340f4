"""README's tables: what is measured here, and what the authors of a family report."""
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from metafiles import FAMILIES, Entry

from mm_efficient.analysis.models import SIZES, complexity, find_model
from mm_efficient.analysis.results import read_rows
from mm_efficient.errors import InputError
from mm_efficient.weights import Family

BEGIN = '<!-- made by tools/model_zoo/update_model_zoo.py: begin -->'
END = '<!-- made by tools/model_zoo/update_model_zoo.py: end -->'
METHODS = dict(cls='top-1', r256='at 256', r288='at 288', retinanet='RetinaNet',
               maskrcnn='Mask R-CNN', upernet='UperNet', fpn='Semantic FPN')
# Models of MMPretrain that times are compared with; the first is ResNet-50
PEERS = {'ResNet-50': 'resnet50_8xb32_in1k', 'Swin-T': 'swin-tiny_16xb64_in1k'}
# Where benchmark.py wrote its results, by title of a column
TIMES = {'time 224': 'docs/benchmark/cpu_224.json',
         'time 800': 'docs/benchmark/cpu_800x1344.json'}
COUNTS = ('Parameters', 'Backbone Parameters', 'FLOPs', 'Backbone FLOPs')


def insert(readme: str, tables: str) -> str:
    """Put the tables between their markers.

    Args:
        readme (str): Text with the lines ``BEGIN`` and ``END``.
        tables (str): From :func:`family_tables`.

    Returns:
        str: The new text.

    Raises:
        ValueError: If a marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f'README.md has no lines {BEGIN} and {END} around the tables')
    return f'{before}{BEGIN}\n\n{tables}\n{END}{after}'


def count_peers() -> dict[str, dict[str, int]]:
    """Parameters and multiply-adds of the models that ours are compared with.

    Returns:
        dict[str, dict[str, int]]: By title of the model, with the keys ``COUNTS``.
    """
    counted = {}
    for title, name in PEERS.items():
        classifier = complexity(find_model(name))
        backbone = complexity(find_model(name), SIZES['mmdet']).modules['backbone']
        counted[title] = dict(zip(COUNTS, (
            classifier.parameters, backbone.parameters, classifier.macs,
            backbone.macs)))
    return counted


def read_times(root: Path) -> dict[str, tuple[list[dict], dict]]:
    """Results of the kept benchmarks.

    Args:
        root (Path): Root of the repository.

    Returns:
        dict[str, tuple[list[dict], dict]]: Rows and settings by title of a column;
        without benchmarks that have no file.

    Raises:
        InputError: If a file is not of ``benchmark.py``, or lacks a peer.
    """
    times = {title: read_rows(root / path) for title, path in TIMES.items()
             if (root / path).exists()}
    for title, (rows, _) in times.items():
        missing = set(PEERS.values()) - {row['model'] for row in rows}
        if missing:
            raise InputError(f'{TIMES[title]} has no times of {", ".join(missing)}; '
                             'measure them in the same run, see docs/reproducing.md.')
    return times


def family_tables(entries: Sequence[Entry], measured: Mapping[str, dict],
                  parity: Mapping[str, float], peers: Mapping[str, dict],
                  times: Mapping[str, tuple[list[dict], dict]]) -> str:
    """A table of all that is measured, and what is reported of every family.

    Args:
        entries (Sequence[Entry]): All configs.
        measured (Mapping[str, dict]): By config, see
            :func:`~metafiles.measure`.
        parity (Mapping[str, float]): Errors by reference file.
        peers (Mapping[str, dict]): From :func:`count_peers`.
        times (Mapping[str, tuple]): From :func:`read_times`.

    Returns:
        str: Markdown.
    """
    figures = {(entry.variant, entry.method): measured[entry.config]
               for entry in entries}
    variants = {variant for variant, _ in figures}
    rows = [{**_counts(title, counts), **_times((PEERS[title], ), times)}
            for title, counts in peers.items()]
    sections = []
    for name, family in FAMILIES.items():
        known = [variant for variant in family.variants if variant in variants]
        rows += [_measured(variant, family, figures, parity, times)
                 for variant in known]
        if known:
            sections += [f'### {name}', '', *_head(family),
                         *_table([_reported(variant, family) for variant in known]),
                         '', *_notes(family)]
    return '\n'.join(
        ['### Measured', '', *_table(rows), '', *_conditions(times), *sections])


def _measured(variant: str, family: Family, figures: Mapping, parity: Mapping,
              times: Mapping) -> dict[str, str]:
    """Cells of a variant by column, from what was measured here."""
    cls, det = figures[variant, 'cls'], figures[variant, 'retinanet']
    counts = {**cls, 'Backbone FLOPs': det['Backbone FLOPs']}  # at detection size
    error = parity.get(family.references.get(variant, variant))
    return {**_counts(f'`{variant}`', counts),
            **_times((variant, f'{variant}_retinanet_1x'), times),
            'parity error': '' if error is None else f'{error:.1e}'}


def _counts(title: str, counts: Mapping[str, int]) -> dict[str, str]:
    """Cells of a model, from what was counted under the names ``COUNTS``."""
    parameters, backbone_parameters, macs, backbone_macs = (
        counts[name] for name in COUNTS)
    return {'model': title,
            'params (M)': f'{parameters / 1e6:.2f} / {backbone_parameters / 1e6:.2f}',
            'GMACs 224': f'{macs / 1e9:.2f}',
            'GFLOPs 800': f'{2 * backbone_macs / 1e9:.1f}'}


def _times(names: Sequence[str], times: Mapping) -> dict[str, str]:
    """Time over that of every peer, of the model that has one of these names."""
    cells = dict.fromkeys(TIMES, '')
    for title, (rows, _) in times.items():
        ratios = {row['model']: row['ratio'] for row in rows}
        own = next((ratios[name] for name in names if name in ratios), None)
        if own is not None:
            cells[title] = ' / '.join(
                f'{own / ratios[peer]:.2f}' for peer in PEERS.values())
    return cells


def _conditions(times: Mapping) -> list[str]:
    """Where times were measured, and the milliseconds behind the ratios."""
    notes = []
    for title, (rows, where) in times.items():
        took = {row['model']: row['median_ms'] for row in rows}
        peers = ', '.join(f'{peer} {took[name]:.0f} ms' for peer, name in PEERS.items())
        notes.append(
            f'{title}: {peers}, on {where["hardware"]}, {where["threads"]} thread(s), '
            f'PyTorch {where["torch"].partition("+")[0]}, {rows[0]["passes"]} passes '
            f'in {where["rounds"]} turns; [all results]({TIMES[title]})')
    return _bullets(notes)


def _head(family: Family) -> list[str]:
    classes = ', '.join(f'`{kind}`' for kind in family.classes)
    return [f'[{family.title}]({family.paper}),',
            f'{family.venue}; [code]({family.code}), {family.licence}. '
            f'Here: {classes}.', '']


def _reported(variant: str, family: Family) -> dict[str, str]:
    """Cells of a variant by column, from what its authors report."""
    reported = family.reported.figures.get(variant, {})
    row = {'reported': f'`{variant}`'}
    for key, title in (('parameters', 'params'), ('macs', 'MACs')):
        deviates = (variant, key) in family.reported.deviates
        row[title] = reported.get(key, '') + '*' * deviates
    for method, title in METHODS.items():
        row[title] = ' / '.join(map(str, reported.get(method, {}).values()))
    return row


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A table of the columns that are not empty."""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row)
               if any(row.get(key) for row in rows)]
    lines = [columns, ['---', *(['---:'] * (len(columns) - 1))]]
    lines += [[row.get(key, '') for key in columns] for row in rows]
    return ['| ' + ' | '.join(cells) + ' |' for cells in lines]


def _notes(family: Family) -> list[str]:
    sources = {}  # source -> methods
    for method, source in family.reported.sources.items():
        sources.setdefault(source, []).append(METHODS[method])
    notes = ['Sources: ' + '; '.join(
        f'{", ".join(methods)} in {source}' for source, methods in sources.items())]
    if family.reported.deviates:
        notes.append('\\* not what the published code gives.')
    return _bullets([*notes, *family.reported.notes])


def _bullets(notes: Sequence[str]) -> list[str]:
    lines = [textwrap.fill(f'- {note}', 118, subsequent_indent='  ',
                           break_long_words=False, break_on_hyphens=False)
             for note in notes]
    return [*lines, ''] if lines else []
