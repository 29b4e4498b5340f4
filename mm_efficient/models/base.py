"""`PyramidBackbone`, the base class and contract of all backbones."""
import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.fx
from mmengine.model import PretrainedInit
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..errors import ExecutionError
from ..weights.loading import is_published, load_pretrained
from .layers import is_compiling

NUM_STAGES = 4
MIN_IMAGE_SIZE = 32


class PyramidBackbone(BaseBackbone):
    """Base class of backbones with four stages at strides 4, 8, 16 and 32.

    A subclass sets ``ARCHS``, which maps arch names to settings that all have the
    same keys, ``embed_dims`` and ``depths`` included. Its ``__init__`` builds

    - ``stem``: a module from the image to the input of the first stage;
    - ``stages``: an ``nn.ModuleList`` of ``num_stages`` modules. Each takes the
      (B, C, H, W) output of the previous one and has an ``nn.ModuleList`` named
      ``blocks``;

    and calls :meth:`_freeze_stages` last. Where a feature map is more than the output
    of its stage, e.g. has a norm for dense prediction, the subclass overrides
    :meth:`_feature_map`.

    Stages after the last one in ``out_indices`` are not built, so every parameter
    gets a gradient.

    Args:
        arch (str | dict): A key of ``ARCHS``, or a dict with the same keys as
            its entries, and lists as long as theirs.
        in_channels (int): Number of image channels. Defaults to 3.
        out_indices (int | Sequence[int]): Stages to return, in increasing order,
            out of 0, 1, 2, 3 (strides 4, 8, 16, 32); negative ones count from the
            end. Defaults to (3, ).
        pretrain_size (int, optional): Side in pixels of the square images that the
            weights were trained on. If given, every quantity that drifts with the
            resolution is held at its value for that size; at that size nothing
            changes. Defaults to None, the published behaviour at every size.
        frozen_stages (int): Freeze (no gradient, eval mode) nothing (-1), the stem
            (0), or the stem and the first i stages (i). Defaults to -1.
        norm_eval (bool): Keep batch norms in eval mode while training, with fixed
            statistics. Defaults to False.
        with_cp (bool): Use gradient checkpointing: recompute every block in the
            backward pass instead of keeping its activations. Defaults to False.
        init_cfg (dict | list[dict], optional): MMEngine's initialisation config.
            Defaults to None, the family's own initialisation.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If ``init_cfg`` is neither a dict nor a list of dicts.
    """

    ARCHS: dict[str, dict] = {}
    init_cfg: Any  # MMEngine's, dict | list[dict] | None
    # Regular expressions of parameters that only dense prediction uses: weights of a
    # classifier lack them
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
        if not all(isinstance(cfg, dict) for cfg in (
                init_cfg if isinstance(init_cfg, list) else [init_cfg or {}])):
            raise TypeError('init_cfg must be a dict, a list of dicts or None, got '
                            f'{init_cfg!r}')
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
        """Return the settings of ``arch``, checked for keys and lengths."""
        if isinstance(arch, str):
            if arch not in cls.ARCHS:
                raise ValueError(f'unknown arch {arch!r} of {cls.__name__}, '
                                 f'available: {", ".join(cls.ARCHS)}')
            return cls.ARCHS[arch]
        if not isinstance(arch, dict):
            raise ValueError(f'arch must be one of {", ".join(cls.ARCHS)}, or a dict '
                             f'of settings, got {arch!r}')
        example = next(iter(cls.ARCHS.values()))
        expected, given = set(example), set(arch)
        if given != expected:
            raise ValueError(
                f'an arch dict of {cls.__name__} needs exactly the keys '
                f'{sorted(expected)}; missing: {sorted(expected - given)}, '
                f'unknown: {sorted(given - expected)}')
        for key, value in example.items():
            if isinstance(value, (list, tuple)) and (
                    not isinstance(arch[key], (list, tuple))
                    or len(arch[key]) != len(value)):
                raise ValueError(
                    f'{key} of an arch dict of {cls.__name__} needs {len(value)} '
                    f'entries, as in {value}, got {arch[key]}')
        return dict(arch)

    @staticmethod
    def _parse_out_indices(
            out_indices: int | Sequence[int]) -> tuple[int, ...]:
        if isinstance(out_indices, int):
            out_indices = (out_indices, )
        stages = tuple(i + NUM_STAGES if i < 0 else i for i in out_indices)
        if (not stages or not set(stages) <= set(range(NUM_STAGES))
                or list(stages) != sorted(set(stages))):
            raise ValueError(
                'out_indices must be increasing stage numbers out of 0, 1, 2, 3 (or -4 '
                f'to -1, from the end), got {tuple(out_indices)}')
        return stages

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            x (Tensor): Normalised images, (B, in_channels, H, W), H and W at
                least 32 pixels, of any parity and aspect.

        Returns:
            tuple[Tensor]: For every i in ``out_indices`` a feature map of shape
            (B, feature_channels[i], ceil(H / s), ceil(W / s)), where
            s = 4, 8, 16, 32 for i = 0, 1, 2, 3. They are contiguous, as a ResNet's,
            or channels last if ``x`` is.

        Raises:
            ValueError: If ``x`` has the wrong number of dimensions or channels,
                or is smaller than 32 x 32.
        """
        return tuple(self.run_stages(x, self.out_indices))

    def run_stages(self, x: Tensor, indices: Collection[int]) -> list[Any]:
        """Run the stages up to the last one that is wanted.

        Args:
            x (Tensor): Images as in :meth:`forward`.
            indices (Collection[int]): Stages to return.

        Returns:
            list: Feature maps of the stages in ``out_indices``; of others what they
            give to the next stage, a map without the norm that feature maps may have.
        """
        self._check_input(x)
        layout = _memory_layout(x)
        x = self.stem(x)
        outs = []
        last = max(indices)
        for i, stage in enumerate(self.stages):
            if i > last:
                break
            x = stage(x)  # (B, C_i, ceil(H / s_i), ceil(W / s_i))
            if i in indices:
                out = self._feature_map(i, x) if i in self.out_indices else x
                outs.append(_laid_out(out, layout))
        return outs

    def _feature_map(self, index: int, x: Tensor) -> Tensor:
        """Make the returned feature map from ``x``, the output of stage ``index``."""
        return x

    def _check_input(self, x: Tensor) -> None:
        _check_images(x, self.in_channels, type(self).__name__)

    def __prepare_scriptable__(self) -> None:
        """Refuse ``torch.jit.script``, which calls this."""
        raise ExecutionError(
            f'torch.jit.script cannot compile {type(self).__name__}: TorchScript has '
            'no autograd functions and no contexts that depend on a tensor. Use '
            'torch.jit.trace, or tools/deployment/export.py for dynamic sizes')

    def init_weights(self) -> None:
        """Initialise from scratch, or load the weights that ``init_cfg`` names.

        ``published://<variant>`` of a variant whose weights were never published means
        from scratch, with a warning.

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
        usable = [cfg for cfg in pretrained if is_published(cfg['checkpoint'])]
        if not usable:
            self._init_from_scratch()
        # MMEngine would only warn about weights that do not fit
        self.init_cfg = [cfg for cfg in cfgs if cfg and cfg not in pretrained]
        super().init_weights()
        self.init_cfg = init_cfg
        for cfg in usable:
            load_pretrained(self, cfg['checkpoint'], cfg.get('prefix'),
                            cfg.get('map_location', 'cpu'))

    def _init_from_scratch(self) -> None:
        """Initialise as published; PyTorch's initialisation unless overridden."""

    def train(self, mode: bool = True) -> 'PyramidBackbone':
        """Set training mode, except for frozen stages and ``norm_eval`` norms."""
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
        """Return the depth of a parameter, for layer-wise learning-rate decay.

        The stem is layer 0 and every block is one layer. Downsampling and position
        embeddings belong to the first block of their stage, a norm at the end of a
        stage to its last block. Everything after the last block is the last layer.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of this backbone's parameters, such as
                ``'backbone.'``. Defaults to ''.

        Returns:
            tuple[int, int]: Layer of the parameter, and number of layers.
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


@torch.fx.wrap  # a single operator in graphs
def _check_images(x: Tensor, channels: int, name: str) -> None:
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f'{name} expects images of shape (B, {channels}, H, W), got '
            f'{tuple(x.shape)}; the number of channels is set by in_channels')
    if x.shape[2] < MIN_IMAGE_SIZE or x.shape[3] < MIN_IMAGE_SIZE:
        raise ValueError(
            f'{name} has stride 32 and needs images of at least {MIN_IMAGE_SIZE} x '
            f'{MIN_IMAGE_SIZE} pixels, got {x.shape[2]} x {x.shape[3]} (H x W); resize '
            'or pad them')


@torch.fx.wrap
def _memory_layout(x: Tensor) -> torch.memory_format:
    """The order of the pixels in memory."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


@torch.fx.wrap
def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    # Class tokens have no pixels
    return x.contiguous(memory_format=layout) if x.ndim == 4 else x.contiguous()


def fit_where_needed(model: nn.Module, images: Tensor | Sequence[Tensor]) -> None:
    """Call ``fit`` on every module whose ``is_fitted`` is False.

    EcoFormer's hash functions are neither trained nor loaded, but computed once from
    images; until then the backbone refuses to run.

    Args:
        model (nn.Module): Any model; modules that are fitted already are left alone.
        images (Tensor | Sequence[Tensor]): Normalised images, (B, C, H, W), or
            several such batches.
    """
    for module in model.modules():
        if not getattr(module, 'is_fitted', True):
            module.fit(images)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Compute stochastic-depth rates that grow linearly from 0 to ``rate``.

    Args:
        rate (float): Rate of the last block.
        depths (Sequence[int]): Number of blocks per stage.

    Returns:
        list[list[float]]: For every stage, one rate per block.
    """
    flat = iter(np.linspace(0, rate, sum(depths)).tolist())
    return [[next(flat) for _ in range(depth)] for depth in depths]


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, with_cp: bool) -> Tensor:
    """Apply blocks one after the other.

    Args:
        blocks (Iterable[nn.Module]): Modules with one argument.
        x (Tensor): Input of the first block.
        with_cp (bool): Use gradient checkpointing per block.

    Returns:
        Tensor: Output of the last block.
    """
    for block in blocks:
        x = (recomputed(block, x) if with_cp and torch.is_grad_enabled()
             else block(x))
    return x


def recomputed(block: nn.Module, x: Tensor, random: bool = True) -> Tensor:
    """Apply a block whose activations the backward pass recomputes.

    Recomputation stops at the last tensor that is needed, so the output of a linear
    layer or convolution at the end is not computed again.

    Args:
        block (nn.Module): Module with one argument.
        x (Tensor): Its input, which is kept.
        random (bool): Whether the block draws random numbers. Defaults to True.

    Returns:
        Tensor: Its output.
    """
    if is_compiling():
        # A compiler updates statistics once, and takes no such contexts
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=random,
                      context_fn=partial(_checkpoint_contexts, block))


def _checkpoint_contexts(block: nn.Module
                         ) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the forward pass and of its recomputation."""
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep recomputation from updating batch-norm statistics a second time.

    The norms still have to run with their statistics tracked: checkpointing compares
    the tensors that both runs save.
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
