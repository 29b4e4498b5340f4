"""Build script of mm-efficient.

Besides the package, a wheel carries ``configs/``, ``tools/`` and
``model-index.yml`` in ``mm_efficient/.mim``, where MIM and
``mmpretrain.apis`` look for them; an editable install gets links instead.
"""
import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')

# mmengine, mmcv, mmdet, ... come from one of two sets of distributions that
# install the same modules, and mmcv with or without compiled operators.
# Requiring either set unasked would overwrite the other, so the base install
# names only what both need and the set is chosen by an extra:
#   mm-efficient[all] 'mmcv-lite<2.2'    OpenMMLab's own packages; mmcv instead
#                                        of mmcv-lite where it can be compiled
#   mm-efficient[onedl]            the OneDL continuation of all of them
# A project that has its packages already needs no extra at all. Exact
# versions are in requirements/.
REQUIRES = [
    'torch>=2.1', 'torchvision>=0.16', 'timm>=1.0', 'ftfy', 'regex',
    'setuptools<82'
]
CLS = ['mmengine>=0.10.4', 'mmpretrain>=1.2.0']
DET = CLS + ['mmdet>=3.3.0']
SEG = CLS + ['mmsegmentation>=1.2.2']
ONEDL = [
    'onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6', 'onedl-mmpretrain>=1.3.6',
    'onedl-mmdetection>=3.5.1', 'onedl-mmsegmentation>=1.4.2'
]
ONNX = ['onnx', 'onnxruntime', 'onnxscript']
COREML = ['coremltools>=9.0']
DEV = ONNX + [
    'hypothesis', 'import-linter', 'mypy', 'pre-commit', 'pytest', 'pytest-xdist',
    'ruff', 'tensorboard', 'types-PyYAML', 'uv'
]


class BuildWithMim(build_py):
    """Add ``mm_efficient/.mim``, by copies or, for editable installs, links.

    It hooks into ``build_py`` rather than looking at ``sys.argv``: pip and uv
    ask for ``editable_wheel``, ``bdist_wheel`` or ``dist_info`` under
    varying names, but every way to install runs this command. An sdist gets
    the same files at their own places through MANIFEST.in.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            self._fill(ROOT / 'mm_efficient' / '.mim', _link)
        else:
            self._fill(Path(self.build_lib) / 'mm_efficient' / '.mim', _copy)

    @staticmethod
    def _fill(folder, place):
        folder.mkdir(parents=True, exist_ok=True)
        for name in MIM_CONTENT:
            source, target = ROOT / name, folder / name
            _remove(target)
            if source.exists():
                place(source, target)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def _copy(source, target):
    if source.is_dir():
        # tools/model_zoo writes into a checkout
        ignored = shutil.ignore_patterns('__pycache__', '*.pyc', '.*', 'model_zoo')
        shutil.copytree(source, target, ignore=ignored)
    else:
        shutil.copyfile(source, target)


def _link(source, target):
    try:
        target.symlink_to(os.path.relpath(source, target.parent))
    except OSError:  # Windows without the right to make links
        _copy(source, target)


def _version():
    names = {}
    exec((ROOT / 'mm_efficient' / 'version.py').read_text(), names)
    return names['__version__']


def _readme():
    path = ROOT / 'README.md'
    return path.read_text(encoding='utf-8') if path.exists() else ''


setup(
    name='mm-efficient',
    version=_version(),
    description='Efficient backbones for OpenMMLab dense prediction',
    long_description=_readme(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['mm_efficient', 'mm_efficient.*']),
    python_requires='>=3.10',
    install_requires=REQUIRES,
    extras_require=dict(
        det=DET,
        seg=SEG,
        all=sorted(set(DET + SEG)),
        onedl=ONEDL,
        onnx=ONNX,
        coreml=COREML,
        dev=DEV,
        docs=['mkdocs>=1.6']),
    cmdclass=dict(build_py=BuildWithMim),
    zip_safe=False,
    classifiers=[
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ])
