"""EcoFormer: kernelised hashing attention in PVTv2 and Twins-SVT.

Paper: https://arxiv.org/abs/2209.09004 (NeurIPS 2022). Original:
https://github.com/ziplab/EcoFormer, Apache-2.0 licence, ZIP Lab, Monash University.
The base architectures are PVTv2 (https://arxiv.org/abs/2106.13797) and Twins-SVT
(https://arxiv.org/abs/2104.13840), without spatial reduction and windows. This file is
written from the architecture's description.

Differences from the original:

- the checkpoint records whether the hash functions are fitted, and a model with
  unfitted ones refuses to run; the original fits them to the first input it
  sees, even a test image;
- `fit` fits them before training, on a bounded sample of tokens;
- hashing runs in float32 under autocast, with expanded distances;
- Twins' patch embeddings pad the image to whole patches; the original drops the
  remainder (there is none at multiples of 32);
- for dense prediction, every feature map of Twins gets a layer norm (the original has
  no dense prediction);
- stochastic depth is off by default, as in the published runs, which trained in
  evaluation mode whatever their configs say.

The attention of stages 1 to 3 averages over tokens, so nothing drifts with image size
and ``pretrain_size`` has no effect. Attention is global, so padding takes part in it.
"""
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.registry import MODELS
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from ..base import PyramidBackbone, drop_path_rates
from ..layers import LayerNorm
from .layers import (
    Block,
    ConvMlp,
    HashAttention,
    PatchEmbed,
    PositionConv,
    SoftmaxAttention,
    Stage,
)

NUM_HASH_STAGES = 3  # the last stage has softmax attention
MAX_TOKENS = 512  # per image in the quadratic part of the fitting


class EcoFormer(PyramidBackbone):
    """Base class of EcoFormer on PVTv2 and on Twins-SVT.

    Args:
        arch (str | dict): Name of a variant, or a dict with ``embed_dims``,
            ``num_heads``, ``depths`` and ``mlp_ratios`` of the four stages.
        attention (str): 'hash' for hashing attention in stages 1 to 3, or 'softmax'
            for softmax attention everywhere (quadratic in the number of tokens), which
            the published recipe starts from. A hash model can load weights of either
            form; after loading softmax weights it has to be fitted.
            Defaults to 'hash'.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages to return. Defaults to (3, ).
        pretrain_size (int, optional): No effect: nothing in this family drifts with
            image size. Defaults to None.
        drop_path_rate (float): Rate of the last block, growing linearly from 0.
            Defaults to 0.
        frozen_stages (int): -1 none, 0 the stem, i up to stage i. Defaults to -1.
        norm_eval (bool): No effect: there are no batch norms. Defaults to False.
        with_cp (bool): Recompute blocks in the backward pass. Defaults to False.
        init_cfg (dict | list[dict], optional): Initialisation. Defaults to None.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self,
                 arch: str | dict,
                 attention: str = 'hash',
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] = (3, ),
                 pretrain_size: int | None = None,
                 drop_path_rate: float = 0.,
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None):
        super().__init__(arch, in_channels, out_indices, pretrain_size,
                         frozen_stages, norm_eval, with_cp, init_cfg)
        if attention not in ('hash', 'softmax'):
            raise ValueError(
                f"attention must be 'hash' or 'softmax', got {attention!r}")
        settings = self.arch_settings
        if any(c % h for c, h in zip(settings['embed_dims'], settings['num_heads'])):
            raise ValueError('embed_dims must be multiples of num_heads, got '
                             f'{settings["embed_dims"]} and {settings["num_heads"]}')
        self.attention = attention
        dims = (in_channels, *self.feature_channels)
        rates = drop_path_rates(drop_path_rate, settings['depths'])
        self.stem = self._make_patch_embed(0, dims[0], dims[1])
        self.stages = nn.ModuleList()
        for i in range(self.num_stages):
            downsample = (self._make_patch_embed(i, dims[i], dims[i + 1])
                          if i else nn.Identity())
            hashing = attention == 'hash' and i < NUM_HASH_STAGES
            attend = HashAttention if hashing else SoftmaxAttention
            blocks = [
                Block(dims[i + 1], attend(dims[i + 1], settings['num_heads'][i]),
                      self._make_mlp(dims[i + 1], settings['mlp_ratios'][i]), rate)
                for rate in rates[i]]
            self.stages.append(self._make_stage(dims[i + 1], downsample, blocks))
        if attention == 'hash':
            self.register_buffer('fitted', torch.tensor(False))
        self._known_fitted = attention == 'softmax'
        self._add_output_norms()
        self._freeze_stages()

    def _make_patch_embed(self, index: int, in_dims: int, dims: int) -> nn.Module:
        raise NotImplementedError

    def _make_mlp(self, dims: int, ratio: int) -> nn.Module:
        raise NotImplementedError

    def _make_stage(self, dims: int, downsample: nn.Module,
                    blocks: Sequence[nn.Module]) -> Stage:
        raise NotImplementedError

    def _add_output_norms(self) -> None:
        """Add norms between stages and returned feature maps, if any."""

    def run_stages(self, x: Tensor, indices: Collection[int]) -> list[Any]:
        """Run stages, see :class:`PyramidBackbone`.

        Raises:
            RuntimeError: If the hash functions are not fitted.
        """
        self._check_fitted()
        return super().run_stages(x, indices)

    def _init_from_scratch(self) -> None:
        """Initialise as published; hash functions are left alone."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0,
                                (2 * module.groups / fan_out)**0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    # ------------------------------------------------------------ hash functions

    @property
    def is_fitted(self) -> bool:
        """Whether the hash functions are fitted; True without any."""
        return self.attention == 'softmax' or bool(self.fitted)

    def _check_fitted(self) -> None:
        # Reading the buffer synchronises the device and breaks graphs: only until set
        if self._known_fitted or self.fitted.is_meta:
            return
        if not self.is_fitted:
            raise RuntimeError(
                f'the hash functions of this {type(self).__name__} are not fitted and '
                'its output would be meaningless: load a checkpoint of a fitted '
                "model, train with custom_hooks=[dict(type='HashFittingHook')], or "
                "call the backbone's fit(images)")
        self._known_fitted = True

    @torch.no_grad()
    def fit(self, images: Tensor | Sequence[Tensor], max_tokens: int = MAX_TOKENS,
            seed: int = 0, progress: Callable[[], None] | None = None) -> None:
        """Fit the hash functions to images, layer by layer.

        They depend on the weights of all layers before them, so fit once, after
        loading or initialising the weights. Fitting again replaces the hash functions;
        weights trained with the old ones do not work with the new ones.

        Args:
            images (Tensor | Sequence[Tensor]): Normalised images, (B, C, H, W), or
                several such batches, of different sizes if need be. Together at
                least 25 tokens of stage 3: 80 x 80 pixels or more images.
            max_tokens (int): Tokens per image in the part that is quadratic.
                Defaults to 512.
            seed (int): Seed of the choice of anchors and tokens. Defaults to 0.
            progress (Callable, optional): Called after each attention, of which
                there are ``num_hash_attentions``. Defaults to None.

        Raises:
            ValueError: If there are too few tokens, or images or weights give NaN or
                infinity.
        """
        batches = [images] if isinstance(images, Tensor) else images
        generator = torch.Generator().manual_seed(seed)
        training = self.training
        self.eval()

        def fit_attention(attention: HashAttention, inputs: Sequence[Tensor]) -> None:
            attention.fit(inputs, max_tokens, generator)
            if progress is not None:
                progress()

        try:
            if self.num_hash_attentions:
                for x in batches:
                    self._check_input(x)
                maps = [self.stem(x) for x in batches]
                for stage in self.stages[:NUM_HASH_STAGES]:
                    maps = stage.fit(maps, fit_attention)
                self.fitted.fill_(True)
                self._known_fitted = True
        finally:
            self.train(training)

    @property
    def num_hash_attentions(self) -> int:
        """Number of attentions that have hash functions."""
        return sum(isinstance(m, HashAttention) for m in self.modules())

    # --------------------------------------------------------------------- weights

    def adapt_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn weights with softmax attention into weights of a hash model.

        Queries and values are kept, keys dropped; the hash functions have to be
        fitted. Other weights are returned unchanged.

        Args:
            weights (Mapping[str, Tensor]): Weights of the backbone.

        Returns:
            dict[str, Tensor]: Weights with the names of this model.
        """
        weights = dict(weights)
        names = [name for name, module in self.named_modules()
                 if isinstance(module, HashAttention)
                 and f'{name}.qkv.weight' in weights]
        own = self.state_dict()
        for name in names:
            for leaf in ('weight', 'bias'):
                qkv = weights.pop(f'{name}.qkv.{leaf}', None)
                if qkv is not None:
                    weights[f'{name}.qk.{leaf}'], _, weights[f'{name}.v.{leaf}'] = (
                        qkv.chunk(3))
            for buffer in ('anchors', 'kernel_mean', 'projection'):
                weights[f'{name}.{buffer}'] = own[f'{name}.{buffer}']
        if names:
            weights['fitted'] = torch.tensor(False)
        if names and not self.fitted.is_meta:
            print_log(f'{type(self).__name__}: loading softmax-attention weights into '
                      'a hashing model: queries and values are kept, the hash '
                      'functions are not fitted yet', logger='current')
        return weights

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str,
                              *args: Any) -> None:
        own = {key: state_dict.pop(key) for key in list(state_dict)
               if key.startswith(prefix)}
        adapted = self.adapt_weights(
            {key[len(prefix):]: value for key, value in own.items()})
        state_dict.update({prefix + key: value for key, value in adapted.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.attention == 'hash' and not self.fitted.is_meta:
            self._known_fitted = self.is_fitted


@MODELS.register_module()
class EcoFormerPVT(EcoFormer):
    """EcoFormer on PVTv2: overlapping patches, and a convolution in the MLP.

    Every stage ends with a layer norm. Arguments as in :class:`EcoFormer`; ``arch`` is
    'b0', 'b1', 'b2', 'b3' or 'b4'.

    Example:
        >>> import torch
        >>> model = EcoFormerPVT('b0', out_indices=(0, 1, 2, 3)).eval()
        >>> model.fit(torch.rand(2, 3, 96, 96))
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 160, 4, 6), (1, 256, 2, 3)]
    """

    ARCHS = {
        arch: dict(embed_dims=embed_dims, num_heads=[1, 2, 5, 8], depths=depths,
                   mlp_ratios=[8, 8, 4, 4])
        for arch, embed_dims, depths in (
            ('b0', [32, 64, 160, 256], [2, 2, 2, 2]),
            ('b1', [64, 128, 320, 512], [2, 2, 2, 2]),
            ('b2', [64, 128, 320, 512], [3, 4, 6, 3]),
            ('b3', [64, 128, 320, 512], [3, 4, 18, 3]),
            ('b4', [64, 128, 320, 512], [3, 8, 27, 3]),
        )
    }

    def _make_patch_embed(self, index: int, in_dims: int, dims: int) -> nn.Module:
        kernel, stride = (3, 2) if index else (7, 4)
        return PatchEmbed(in_dims, dims, kernel, stride)

    def _make_mlp(self, dims: int, ratio: int) -> nn.Module:
        return ConvMlp(dims, ratio)

    def _make_stage(self, dims: int, downsample: nn.Module,
                    blocks: Sequence[nn.Module]) -> Stage:
        return Stage(downsample, blocks, None, LayerNorm(dims, eps=1e-6),
                     self.with_cp)


@MODELS.register_module()
class EcoFormerTwins(EcoFormer):
    """EcoFormer on Twins-SVT: separate patches, and conditional position encoding.

    The last feature map has the published final norm. The others, used by dense
    prediction only, have norms of their own, which classifier weights lack. Arguments
    as in :class:`EcoFormer`; ``arch`` is 's'.

    Example:
        >>> import torch
        >>> model = EcoFormerTwins('s', attention='softmax').eval()
        >>> model(torch.rand(1, 3, 64, 96))[0].shape
        torch.Size([1, 512, 2, 3])
    """

    ARCHS = {
        's': dict(embed_dims=[64, 128, 256, 512], num_heads=[2, 4, 8, 16],
                  depths=[2, 2, 10, 4], mlp_ratios=[4, 4, 4, 4]),
    }
    DENSE_ONLY = (r'norm[012]\..*', )

    def _make_patch_embed(self, index: int, in_dims: int, dims: int) -> nn.Module:
        size = 2 if index else 4
        return PatchEmbed(in_dims, dims, size, size)

    def _make_mlp(self, dims: int, ratio: int) -> nn.Module:
        return Mlp(dims, ratio * dims)

    def _make_stage(self, dims: int, downsample: nn.Module,
                    blocks: Sequence[nn.Module]) -> Stage:
        return Stage(downsample, blocks, PositionConv(dims), None, self.with_cp)

    def _add_output_norms(self) -> None:
        for i in self.out_indices:
            self.add_module(f'norm{i}', LayerNorm(self.feature_channels[i],
                                                     eps=1e-6))

    def _feature_map(self, index: int, x: Tensor) -> Tensor:
        norm = getattr(self, f'norm{index}')
        return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
