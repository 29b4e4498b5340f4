"""Run a tool of another package, with mmcv's operators and our models in place.

    python -m mm_efficient TOOL.py ARGUMENTS ...

Without compiled mmcv, tools that import MMDetection or MMSegmentation before they read
a config fail unless this package is imported first.
"""
import runpy
import sys
from pathlib import Path

from .errors import InputError, error_line


def main() -> None:
    """Run the script that the command line names."""
    sys.argv = sys.argv[1:]
    with error_line():
        if not sys.argv or not Path(sys.argv[0]).is_file():
            raise InputError('expected a Python file and its arguments, got '
                             f'{" ".join(sys.argv) or "nothing"!r}: python -m '
                             'mm_efficient TOOL.py ARGUMENTS')
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
