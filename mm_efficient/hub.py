"""Our models by name, in MMPretrain's hub and in MMEngine's inferencers."""
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from mmengine.fileio import load
from mmengine.infer import BaseInferencer
from mmpretrain.apis import ModelHub

from .files import configs_folder

CONFIGS = dict(mmdet='det', mmseg='seg')  # package of an inferencer -> our folder


@functools.cache  # registering a model twice is an error
def register_classifiers() -> None:
    """Let ``mmpretrain.list_models`` and ``mmpretrain.get_model`` find our classifiers.

    Detectors and segmentors are left out, because MMPretrain could not build them. The
    weights of a classifier are those published, converted when they are loaded, or the
    file in ``checkpoints/``. Where there are none, ``pretrained=True`` is an error.
    """
    configs = configs_folder()
    metafile = configs / 'cls' / 'metafile.yml'
    if metafile.is_file():  # a bare copy of the package has no configs
        ModelHub.register_model_index(metafile, config_prefix=configs.parent)
        for model in ModelHub._models_dict.values():
            if model.filepath == str(metafile):
                variant = Path(model.config).stem.rpartition('_')[0]
                model.weights = f'published://{variant}'


@functools.cache
def register_names() -> None:
    """Let ``DetInferencer`` and ``MMSegInferencer`` find our configs by name.

    A name is that of the config's file, or the one in its metafile. Nobody published
    weights of these models, so the inferencer needs ``weights``.
    """
    theirs = BaseInferencer._get_models_from_metafile

    def models(dir: str) -> Iterator[dict]:
        yield from theirs(dir)
        for package, folder in CONFIGS.items():
            module = sys.modules.get(package)
            home = Path(module.__path__[0]) if module else None
            if home and Path(dir) in (home / '.mim', home.parent):
                yield from _ours(folder)

    BaseInferencer._get_models_from_metafile = staticmethod(models)


def _ours(folder: str) -> Iterator[dict]:
    """Entries of our metafile in the form that inferencers read."""
    configs = configs_folder()
    metafile = configs / folder / 'metafile.yml'
    for entry in load(metafile)['Models'] if metafile.is_file() else ():
        config = configs.parent / entry['Config']
        yield dict(entry, Alias=[config.stem], Config=str(config), Weights=None)
