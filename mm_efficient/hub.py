"""Our classifiers in MMPretrain's model hub."""
import functools

from mmpretrain.apis import ModelHub

from .files import configs_folder


@functools.cache  # registering a model twice is an error
def register_classifiers() -> None:
    """Let ``mmpretrain.list_models`` and ``mmpretrain.get_model`` find our classifiers.

    Detectors and segmentors are left out, because MMPretrain could not build them.
    """
    configs = configs_folder()
    metafile = configs / 'cls' / 'metafile.yml'
    if metafile.is_file():  # a bare copy of the package has no configs
        ModelHub.register_model_index(metafile, config_prefix=configs.parent)
