"""Layer-wise learning-rate decay for all three tasks."""
from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """Smaller learning rates for earlier layers of the backbone.

    MMPretrain's constructor supports classifiers only, because it asks the model for
    the depth of a parameter. This one asks ``model.backbone.get_layer_depth`` and works
    for any task. Neck and heads use the full learning rate::

        optim_wrapper = dict(
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9))

    The other keys of ``paramwise_cfg`` are those of MMPretrain's constructor:
    ``bias_decay_mult``, ``norm_decay_mult``, ``flat_decay_mult`` and ``custom_keys``
    with ``decay_mult``.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module,
                   prefix: str = '',
                   get_layer_depth: Callable[..., tuple[int, int]] | None = None,
                   **kwargs: Any) -> None:
        """Append the parameters of ``module``, one group each, to ``params``.

        Raises:
            ValueError: If the backbone has no ``get_layer_depth``.
        """
        if get_layer_depth is None:
            backbone = getattr(module, 'backbone', None)
            if not hasattr(backbone, 'get_layer_depth'):
                raise ValueError(
                    f'{type(self).__name__} needs model.backbone.get_layer_depth, '
                    f'which {type(backbone).__name__} does not have: use a backbone '
                    'of mm_efficient or remove optim_wrapper.constructor')
            get_layer_depth = partial(backbone.get_layer_depth, prefix='backbone.')
        super().add_params(params, module, prefix, get_layer_depth, **kwargs)
