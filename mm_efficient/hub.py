"""Our classifiers among MMPretrain's pre-defined models."""
from mmpretrain.apis import ModelHub

from .files import configs_folder

LISTING = '_register_mmpretrain_models'  # what every look-up of ModelHub calls first


def register_classifiers() -> None:
    """Let ``mmpretrain.list_models`` and ``mmpretrain.get_model`` find our classifiers.

    Nothing is read before the first look-up: parsing the metafile takes a good part
    of a second, which most programs that import this package would pay for nothing.
    Calling this twice is fine.
    """
    register_theirs = getattr(ModelHub, LISTING, None)
    if register_theirs is None:  # not the releases we know: register at once
        _register_metafile()
    elif getattr(register_theirs, '__module__', None) != __name__:
        setattr(ModelHub, LISTING, staticmethod(_Listing(register_theirs)))


class _Listing:
    """MMPretrain's own registration, and ours after it, once.

    Args:
        register_theirs (Callable[[], None]): MMPretrain's, which runs once as well.
    """

    def __init__(self, register_theirs):
        self.register_theirs = register_theirs
        self.done = False

    def __call__(self) -> None:
        self.register_theirs()
        if not self.done:
            self.done = True  # registering a model twice is an error
            _register_metafile()


def _register_metafile() -> None:
    """Classification alone: MMPretrain could not build the other models."""
    configs = configs_folder()
    metafile = configs / 'cls' / 'metafile.yml'
    if metafile.is_file():  # a copy of the package alone has no configs
        ModelHub.register_model_index(metafile, config_prefix=configs.parent)
