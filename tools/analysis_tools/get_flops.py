"""Count parameters, multiply-adds and activations of models.

Counts convolutions, linear layers and all other matmuls, including those inside
attention and SOFT's landmark inverse. One MAC is two FLOPs; OpenMMLab's tables and many
papers call MACs "FLOPs". Elementwise work is not counted. Detectors are counted with
the most RoIs that inference keeps: 1000 for a box head, 100 for a mask head. The rules
are in mm_efficient/analysis/complexity.py.

examples:
  get_flops.py soft_small timm/resnet50 swin-tiny_16xb64_in1k
  get_flops.py configs/det/soft_small_maskrcnn_1x.py --shape 800x1344
  get_flops.py soft_small --per-module 4
"""
import mm_efficient  # noqa: F401
from mm_efficient.analysis import complexity, model_parser, print_counts
from mm_efficient.errors import error_line

COLUMNS = ('model, module', 'params (M)', 'GMACs', 'GFLOPs', 'activations (M)')


def parse_args(argv=None):
    """Parse the command line."""
    parser = model_parser(__doc__)
    parser.add_argument(
        '--per-module', type=int, nargs='?', const=3, default=1, metavar='DEPTH',
        help='list modules down to this depth (default: 1, the parts of the model; '
        'without a number: 3)')
    return parser.parse_args(argv)


def main(argv=None):
    """Count and print the table."""
    args = parse_args(argv)
    notes = []

    def count(spec, shape):
        cost = complexity(spec, shape)
        notes.extend(f'{spec.name}: not counted: {calls} calls of {operator}'
                     for operator, calls in cost.uncounted.items())
        yield row(spec.name, cost)
        for module, part in cost.modules.items():
            depth = module.count('.') + 1
            if depth <= args.per_module and (part.parameters or part.macs):
                yield row('  ' * depth + module, part)

    with error_line():
        print_counts(args, COLUMNS, count)
    for note in notes:
        print(note)


def row(label, cost):
    """Cells of a model or module."""
    return (label, f'{cost.parameters / 1e6:.3f}', f'{cost.macs / 1e9:.3f}',
            f'{cost.flops / 1e9:.3f}', f'{cost.activations / 1e6:.2f}')


if __name__ == '__main__':
    main()
