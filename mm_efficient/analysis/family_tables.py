"""README's tables of the families: measured here beside reported by the authors."""
import textwrap
from collections.abc import Mapping, Sequence

from .model_index import Entry
from .reported import FAMILIES, Family

BEGIN = '<!-- made by tools/analysis_tools/update_model_index.py: begin -->'
END = '<!-- made by tools/analysis_tools/update_model_index.py: end -->'
METHODS = dict(cls='top-1', r256='at 256', r288='at 288', retinanet='RetinaNet',
               maskrcnn='Mask R-CNN', upernet='UperNet', fpn='Semantic FPN')


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


def family_tables(entries: Sequence[Entry], measured: Mapping[str, dict],
                  parity: Mapping[str, float]) -> str:
    """A table for every family that has configs.

    Args:
        entries (Sequence[Entry]): All configs.
        measured (Mapping[str, dict]): By config, see
            :func:`~mm_efficient.analysis.model_index.measure`.
        parity (Mapping[str, float]): Errors by reference file.

    Returns:
        str: Markdown.
    """
    figures = {}  # (variant, method) -> measured
    for entry in entries:
        figures[entry.variant, entry.method] = measured[entry.config]
    variants = {variant for variant, _ in figures}
    sections = []
    for name, family in FAMILIES.items():
        rows = [_row(variant, family, figures, parity)
                for variant in family.variants if variant in variants]
        if rows:
            classes = ', '.join(f'`{kind}`' for kind in family.classes)
            title = [f'### {name}', '', f'[{family.title}]({family.paper}),',
                     f'{family.venue}; [code]({family.code}), {family.licence}. '
                     f'Here: {classes}.', '']
            sections.append('\n'.join([*title, *_table(rows), '', *_notes(family)]))
    return '\n'.join(sections)


def _row(variant: str, family: Family, figures: Mapping, parity: Mapping) -> dict:
    """Cells of a variant by column."""
    cls, det = figures[variant, 'cls'], figures[variant, 'retinanet']
    row = {'variant': f'`{variant}`'}
    row['params (M)'] = (f'{cls["Parameters"] / 1e6:.2f} / '
                         f'{cls["Backbone Parameters"] / 1e6:.2f}')
    row['GMACs'] = f'{cls["FLOPs"] / 1e9:.2f} / {det["Backbone FLOPs"] / 1e9:.1f}'
    error = parity.get(family.references.get(variant, variant))
    row['parity error'] = '' if error is None else f'{error:.1e}'
    reported = family.variants[variant]
    cells = [reported[key] + '*' * ((variant, key) in family.deviates)
             for key in ('parameters', 'macs') if key in reported]
    row['reported params, MACs'] = ', '.join(cells)
    for method, title in METHODS.items():
        row[title] = ' / '.join(map(str, reported.get(method, {}).values()))
    return row


def _table(rows: Sequence[dict]) -> list[str]:
    columns = [key for key in rows[0] if any(row[key] for row in rows)]
    lines = [columns, ['---', *(['---:'] * (len(columns) - 1))]]
    lines += [[row[key] for key in columns] for row in rows]
    return ['| ' + ' | '.join(cells) + ' |' for cells in lines]


def _notes(family: Family) -> list[str]:
    sources = {}  # source -> methods
    for method, source in family.sources.items():
        sources.setdefault(source, []).append(METHODS[method])
    notes = ['Reported: ' + '; '.join(
        f'{", ".join(methods)} in {source}' for source, methods in sources.items())]
    if family.deviates:
        notes.append('\\* not what the published code gives.')
    return [*(textwrap.fill(f'- {note}', 118, subsequent_indent='  ',
                            break_long_words=False, break_on_hyphens=False)
              for note in (*notes, *family.notes)), '']
