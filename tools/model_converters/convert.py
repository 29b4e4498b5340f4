"""Convert a published checkpoint for the configs in configs/cls.

Recognises family and variant from the tensors. The result loads completely
into the classifier of the configs that the report names; detectors and
segmentors take its backbone by

    init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.')
"""
import argparse
import os

from mm_efficient.errors import InputError, error_line
from mm_efficient.files import check_output
from mm_efficient.weights.download import sha256
from mm_efficient.weights.reading import convert_file, write_checkpoint


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'src', metavar='SRC',
        help='published file: a path (.pth, .safetensors), an http(s) URL, '
        "a downloadable name ('ecoformer_pvt_b0', "
        "'timm/swiftformer_xs.dist_in1k') or any other MMEngine checkpoint URI")
    parser.add_argument(
        'dst', metavar='DST',
        help='file to write (.pth); replaced as a whole if it exists')
    return parser.parse_args(argv)


def check_destination(src, dst):
    """Refuse before anything is downloaded or converted."""
    for path in (src, dst):
        if not path or '\0' in path:
            raise InputError(f'{path!r} is not a path.')
    if os.path.isdir(dst):
        raise InputError(f'{dst} is a folder; name the file to write')
    if dst.endswith('.safetensors'):
        raise InputError(f'{dst}: the result is a PyTorch file, .pth')
    if os.path.isdir(os.path.dirname(os.path.abspath(dst))):  # else it is made later
        check_output(dst, [os.path.splitext(dst)[1].lower()], [src])


def main(argv=None):
    """Convert, and report what was found."""
    args = parse_args(argv)
    with error_line():
        check_destination(args.src, args.dst)
        conversion = convert_file(args.src)
        write_checkpoint(conversion.checkpoint, args.dst)
    print(conversion.report)
    print(f'written    {args.dst}, SHA-256 {sha256(args.dst)}')
    print('next       tools/test.py CONFIG of the above with this file, or\n'
          "           init_cfg=dict(type='Pretrained', "
          f"checkpoint='{args.dst}', prefix='backbone.')")


if __name__ == '__main__':
    main()
