"""Repairs that let stock OpenMMLab run beside current packages.

:class:`ExtensionFinder` serves ``mmcv._ext`` from :mod:`mm_efficient.mmcv_ops` where
MMCV was installed without its compiled extension (``mmcv-lite``, ``onedl-mmcv``), so
that ``mmdet.models`` and ``mmseg.models`` import and their models train.
MMPretrain's multi-modal models are left out where Transformers is too recent for them,
because ``mmpretrain.models`` would not import. The repair of MMEngine's loader of
checkpoints is in :mod:`mm_efficient.weights.unpickling`.
"""
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

try:
    import mmcv  # noqa: F401
    from mmengine.logging import print_log
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"mm_efficient needs OpenMMLab's packages: {error}. Install them with "
        "pip install 'mm-efficient[all]' 'mmcv-lite<2.2', or with pip install "
        "'mm-efficient[onedl]' for the OneDL continuation of them.",
        name=error.name) from error

EXTENSION = 'mmcv._ext'


def apply() -> None:
    """Repair what needs it. Can be called repeatedly."""
    if FINDER not in sys.meta_path:
        # last, so that a compiled extension is found first
        sys.meta_path.append(FINDER)
    _leave_out_multimodal_models()


def _leave_out_multimodal_models() -> None:
    """Treat a Transformers that MMPretrain's models cannot use as if it were missing.

    MMPretrain 1.2 checks for 4.28 or later, and then imports names that later versions
    no longer have.
    """
    from mmpretrain.utils import dependency
    if not dependency.WITH_MULTIMODAL:
        return
    try:
        from transformers.modeling_utils import (  # noqa: F401
            GenerationConfig,
            GenerationMixin,
            PretrainedConfig,
            PreTrainedModel,
            apply_chunking_to_forward,
            find_pruneable_heads_and_indices,
            prune_linear_layer,
        )
    except Exception:  # whatever keeps it from being imported
        dependency.WITH_MULTIMODAL = False


_INSTALL_HINT = (
    'It needs MMCV with its compiled operators, built for this PyTorch: see '
    'https://mmcv.readthedocs.io/en/latest/get_started/installation.html. '
    'Once installed, a compiled mmcv takes precedence over the operators provided '
    'here.')


def _missing_operator(name: str) -> Callable[..., None]:
    """Placeholder for an operator that is not in :mod:`mm_efficient.mmcv_ops`.

    mmcv looks up all names when ``mmcv.ops`` is imported, so the error must not be
    raised before the call.
    """
    if name.startswith('__'):  # Python's own look-ups, e.g. of __path__
        raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')

    def call(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'mm_efficient does not provide the mmcv operator {name!r}. '
            f'{_INSTALL_HINT}')

    return call


class ExtensionFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that serves ``mmcv._ext`` when nothing else can."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        from . import mmcv_ops  # only now, because classification needs none
        vars(module).update(
            {name: getattr(mmcv_ops, name) for name in mmcv_ops.__all__},
            # mmcv.utils.collect_env prints these two
            get_compiler_version=lambda: 'n/a (torchvision operators)',
            get_compiling_cuda_version=lambda: 'n/a',
            __getattr__=_missing_operator)
        rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
        if rank == '0':
            print_log(
                'mmcv is installed without compiled operators: mm_efficient provides '
                'those of the models in MMDetection and MMSegmentation through '
                'PyTorch and torchvision; other mmcv operators raise an error.',
                logger='current')


FINDER = ExtensionFinder()
