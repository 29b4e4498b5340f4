"""ToyNet: the smallest backbone that keeps the contract."""
from collections.abc import Sequence

from mmcv.cnn.bricks import DropPath
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..base import PyramidBackbone, drop_path_rates, run_blocks


class Block(nn.Module):
    """Residual 3x3 convolution and batch norm, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dims: int, drop_path_rate: float):
        super().__init__()
        self.conv = nn.Conv2d(dims, dims, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dims)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.norm(self.conv(x)))


class Stage(nn.Module):
    """Downsampling and blocks, (B, C_in, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, in_dims: int, dims: int, rates: Sequence[float], with_cp: bool):
        super().__init__()
        self.downsample = nn.Conv2d(in_dims, dims, 3, 2, 1)
        self.blocks = nn.ModuleList(Block(dims, rate) for rate in rates)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(self.blocks, self.downsample(x), self.with_cp)


@MODELS.register_module()
class ToyNet(PyramidBackbone):
    """Four stages of residual convolutions. Arguments as in ``PyramidBackbone``."""

    ARCHS = {
        'tiny': dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
        'small': dict(embed_dims=[8, 16, 32, 64], depths=[1, 1, 2, 1]),
    }

    def __init__(self, arch: str | dict = 'tiny', in_channels: int = 3,
                 out_indices: int | Sequence[int] = (3, ),
                 pretrain_size: int | None = None, drop_path_rate: float = 0.,
                 frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | list[dict] | None = None):
        super().__init__(arch, in_channels, out_indices, pretrain_size,
                         frozen_stages, norm_eval, with_cp, init_cfg)
        dims = (8, *self.feature_channels)
        rates = drop_path_rates(drop_path_rate, self.arch_settings['depths'])
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, dims[0], 3, 2, 1), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList(
            Stage(dims[i], dims[i + 1], rates[i], with_cp)
            for i in range(self.num_stages))
        self._freeze_stages()
