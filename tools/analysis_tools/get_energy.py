"""Count multiplications, additions and energy of models by EcoFormer's energy model.

A multiplication costs 3.7 pJ, an addition 0.9 pJ (32-bit floats, 45 nm). Memory
traffic, activation functions, and squares and unit normalisation in the distances of
hashing are not counted; matmuls with binary codes count as additions, although general
hardware multiplies. The rules are in mm_efficient/analysis/energy.py.

examples:
  get_energy.py ecoformer_pvt_b0 timm/pvt_v2_b0
  get_energy.py ecoformer_pvt_b0 --cfg-options model.backbone.attention=softmax
"""
import mm_efficient  # noqa: F401
from mm_efficient.analysis import Operations, energy, model_parser, print_counts
from mm_efficient.errors import error_line

COLUMNS = ('model, part', 'multiplications (G)', 'additions (G)', 'energy (mJ)', '%')


def parse_args(argv=None):
    """Parse the command line."""
    return model_parser(__doc__).parse_args(argv)


def count(spec, shape):
    """Rows of a model and its parts."""
    parts = energy(spec, shape)
    total = sum(parts.values(), Operations())
    for label, part in [(spec.name, total),
                        *((f'  {name}', part) for name, part in parts.items())]:
        if part.mul or part.add:
            yield (label, f'{part.mul / 1e9:.3f}', f'{part.add / 1e9:.3f}',
                   f'{part.picojoule / 1e9:.3f}',
                   f'{100 * part.picojoule / total.picojoule:.1f}')


def main(argv=None):
    """Count and print the table."""
    args = parse_args(argv)
    with error_line():
        print_counts(args, COLUMNS, count)


if __name__ == '__main__':
    main()
