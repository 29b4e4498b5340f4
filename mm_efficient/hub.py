"""Our classifiers in MMPretrain's model hub."""
import functools
from pathlib import Path

from mmpretrain.apis import ModelHub

from .files import configs_folder


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
