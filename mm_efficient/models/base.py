"""The contract every backbone of this package keeps (`PyramidBackbone`)."""
import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from mmengine.model import PretrainedInit
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..weights.loading import load_pretrained

NUM_STAGES = 4
MIN_IMAGE_SIZE = 32


class PyramidBackbone(BaseBackbone):
    """Base class of backbones with four stages at strides 4, 8, 16 and 32.

    A subclass sets ``ARCHS`` (arch name -> settings, all with the same keys,
    ``embed_dims`` and ``depths`` among them) and builds, in its ``__init__``,

    - ``stem``: module from the image to the input of the first stage;
    - ``stages``: ``nn.ModuleList`` of ``num_stages`` modules, each from the
      (B, C, H, W) output of the one before to its own, each with an
      ``nn.ModuleList`` called ``blocks``;

    and calls :meth:`_freeze_stages` last. If a level is not just the output of
    its stage (but has a norm for dense prediction, say), the subclass overrides
    :meth:`_level_output`.

    Stages after the last one in ``out_indices`` are not built, so that no
    parameter is left without a gradient.

    Args:
        arch (str | dict): Name of a variant, or a dict with the same keys as
            the entries of ``ARCHS``.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages whose output is returned,
            increasing, out of 0, 1, 2, 3 (strides 4, 8, 16, 32).
            Defaults to (3, ).
        pretrain_size (int, optional): Side in pixels of the square images the
            weights were trained with. If given, quantities that would drift
            with the resolution are held at their level of that size; at that
            size it changes nothing. Defaults to None, the published behaviour
            at every size.
        frozen_stages (int): -1 freezes nothing, 0 the stem, i the stem and
            the first i stages: no gradient, and eval mode. Defaults to -1.
        norm_eval (bool): Keep batch norms in eval mode (statistics fixed)
            while training. Defaults to False.
        with_cp (bool): Recompute every block in the backward pass instead of
            keeping its activations. Defaults to False.
        init_cfg (dict | list[dict], optional): Initialisation, as of MMEngine.
            Defaults to None, the family's own from scratch.

    Raises:
        ValueError: If an argument is out of range.
    """

    ARCHS: dict[str, dict] = {}
    # Regular expressions of parameters for dense prediction alone, which
    # pretrained weights of a classifier do not have
    DENSE_ONLY: tuple[str, ...] = ()

    def __init__(self,
                 arch: str | dict,
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] = (3, ),
                 pretrain_size: int | None = None,
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None):
        super().__init__(init_cfg)
        self.arch_settings = self._parse_arch(arch)
        self.feature_channels = tuple(self.arch_settings['embed_dims'])
        self.in_channels = in_channels
        self.out_indices = self._parse_out_indices(out_indices)
        self.num_stages = self.out_indices[-1] + 1
        if pretrain_size is not None and pretrain_size < MIN_IMAGE_SIZE:
            raise ValueError(
                'pretrain_size must be None or a side in pixels of at least '
                f'{MIN_IMAGE_SIZE}, got {pretrain_size}')
        self.pretrain_size = pretrain_size
        if frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ValueError('frozen_stages must be -1 (none), 0 (stem) or 1 '
                             f'to {NUM_STAGES}, got {frozen_stages}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

    @classmethod
    def _parse_arch(cls, arch: str | dict) -> dict:
        """Settings of ``arch``, checked for missing and unknown keys."""
        if isinstance(arch, str):
            if arch not in cls.ARCHS:
                raise ValueError(f'unknown arch {arch!r} of {cls.__name__}, '
                                 f'available: {", ".join(cls.ARCHS)}')
            return cls.ARCHS[arch]
        expected = set(next(iter(cls.ARCHS.values())))
        given = set(arch)
        if given != expected:
            raise ValueError(
                f'an arch dict of {cls.__name__} needs exactly the keys '
                f'{sorted(expected)}; missing: {sorted(expected - given)}, '
                f'unknown: {sorted(given - expected)}')
        return dict(arch)

    @staticmethod
    def _parse_out_indices(
            out_indices: int | Sequence[int]) -> tuple[int, ...]:
        if isinstance(out_indices, int):
            out_indices = (out_indices, )
        out_indices = tuple(out_indices)
        if (not out_indices or not set(out_indices) <= set(range(NUM_STAGES))
                or list(out_indices) != sorted(set(out_indices))):
            raise ValueError('out_indices must be increasing stage numbers out '
                             f'of 0, 1, 2, 3, got {out_indices}')
        return out_indices

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            x (Tensor): Normalised images, (B, in_channels, H, W), H and W at
                least 32 pixels, of any parity and aspect.

        Returns:
            tuple[Tensor]: For every i of ``out_indices`` a map of shape
            (B, feature_channels[i], ceil(H / s), ceil(W / s)) with
            s = 4, 8, 16, 32 for i = 0, 1, 2, 3.

        Raises:
            ValueError: If ``x`` has another number of dimensions or channels,
                or is smaller than 32 x 32.
        """
        self._check_input(x)
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)  # (B, C_i, ceil(H / s_i), ceil(W / s_i))
            if i in self.out_indices:
                outs.append(self._level_output(i, x))
        return tuple(outs)

    def _level_output(self, index: int, x: Tensor) -> Tensor:
        """What is returned for the output ``x`` of stage ``index``."""
        return x

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'{type(self).__name__} expects images of shape (B, '
                f'{self.in_channels}, H, W), got {tuple(x.shape)}; the number '
                'of channels is set by in_channels')
        if x.shape[2] < MIN_IMAGE_SIZE or x.shape[3] < MIN_IMAGE_SIZE:
            raise ValueError(
                f'{type(self).__name__} has stride 32 and needs images of at '
                f'least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels, got '
                f'{x.shape[2]} x {x.shape[3]} (H x W); resize or pad them')

    def init_weights(self) -> None:
        """Initialise from scratch, or with the weights ``init_cfg`` names.

        Raises:
            CheckpointError: If the weights of ``type='Pretrained'`` do not fit
                completely, see
                :func:`~mm_efficient.weights.load_pretrained`.
        """
        if self.is_init:
            super().init_weights()  # warns
            return
        init_cfg = self.init_cfg
        cfgs = init_cfg if isinstance(init_cfg, list) else [init_cfg or {}]
        pretrained = [cfg for cfg in cfgs
                      if cfg.get('type') in ('Pretrained', PretrainedInit)]
        if not pretrained:
            self._init_from_scratch()
        # MMEngine's loading of pretrained weights only warns of misfits
        self.init_cfg = [cfg for cfg in cfgs if cfg and cfg not in pretrained]
        super().init_weights()
        self.init_cfg = init_cfg
        for cfg in pretrained:
            load_pretrained(self, cfg['checkpoint'], cfg.get('prefix'),
                            cfg.get('map_location', 'cpu'))

    def _init_from_scratch(self) -> None:
        """The family's published initialisation; PyTorch's if not overridden."""

    def train(self, mode: bool = True):
        """Set training mode, except of frozen stages and ``norm_eval`` norms."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.stem, *self.stages[:self.frozen_stages]]
        if self.frozen_stages >= self.num_stages:
            frozen = [*self.children()]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay.

        The stem is layer 0, every block one layer; what leads into a stage
        (downsampling, position embedding) counts with its first block, a norm
        that ends the stage with its last one, and everything behind the last
        block of all is the last layer.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of this backbone's parameters, such as
                ``'backbone.'``. Defaults to ''.

        Returns:
            tuple[int, int]: Layer of the parameter and number of layers.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        names = param_name[len(prefix):].split('.')
        if names[0] == 'stem':
            return 0, num_layers
        if names[0] != 'stages':
            return num_layers - 1, num_layers
        stage = int(names[1])
        block = 0
        if names[2] == 'blocks':
            block = int(names[3])
        elif names[2] == 'norm':
            block = depths[stage] - 1
        return sum(depths[:stage]) + block + 1, num_layers


def fit_where_needed(model: nn.Module, images: Tensor | Sequence[Tensor]) -> None:
    """Fit what a model computes from images once, neither trained nor loaded.

    EcoFormer's hash functions are of this kind: a backbone with ``is_fitted`` False
    refuses to run until its ``fit`` was called.

    Args:
        model (nn.Module): Any model; what is fitted already is left as it is.
        images (Tensor | Sequence[Tensor]): Normalised images, (B, C, H, W), or
            several such batches.
    """
    for module in model.modules():
        if not getattr(module, 'is_fitted', True):
            module.fit(images)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth growing linearly from 0 to ``rate`` over all blocks.

    Args:
        rate (float): Rate of the last block.
        depths (Sequence[int]): Number of blocks of every stage.

    Returns:
        list[list[float]]: Rate of every block of every stage.
    """
    flat = iter(np.linspace(0, rate, sum(depths)).tolist())
    return [[next(flat) for _ in range(depth)] for depth in depths]


def run_blocks(blocks: nn.ModuleList, x: Tensor, with_cp: bool) -> Tensor:
    """Apply ``blocks`` one after the other.

    Args:
        blocks (nn.ModuleList): Modules of one argument.
        x (Tensor): Input of the first.
        with_cp (bool): Recompute each block in the backward pass instead of
            keeping its activations.

    Returns:
        Tensor: Output of the last block.
    """
    for block in blocks:
        if with_cp and torch.is_grad_enabled():
            x = checkpoint(
                block, x, use_reentrant=False,
                context_fn=lambda block=block: (contextlib.nullcontext(),
                                                _statistics_kept(block)))
        else:
            x = block(x)
    return x


@contextlib.contextmanager
def _statistics_kept(block: nn.Module):
    """Recomputation must not update batch-norm statistics a second time.

    The norms still have to run as they did, with their statistics tracked:
    checkpointing compares the tensors that both runs keep.
    """
    norms = [m for m in block.modules()
             if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
