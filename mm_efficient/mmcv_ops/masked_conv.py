"""Convolution at chosen pixels of one image, for guided anchoring in inference."""
import torch
from torch import Tensor
from torch.nn.functional import pad


def masked_im2col_forward(im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor,
                          col: Tensor, kernel_h: int, kernel_w: int, pad_h: int,
                          pad_w: int) -> None:
    """Neighbourhoods of the chosen pixels, as ``mmcv._ext.masked_im2col_forward``.

    Args:
        im (Tensor): (1, C, H, W).
        mask_h_idx (Tensor): Rows of the chosen pixels, int64, (N, ).
        mask_w_idx (Tensor): Columns of them, (N, ).
        col (Tensor): Filled in place, (C * kernel_h * kernel_w, N).
        kernel_h (int): Height of the kernel.
        kernel_w (int): Width of the kernel.
        pad_h (int): Vertical padding.
        pad_w (int): Horizontal padding.
    """
    padded = pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))  # enough on every side
    i, j = (torch.arange(size, device=im.device)[:, None]
            for size in (kernel_h, kernel_w))
    col.copy_(padded[:, (mask_h_idx + i)[:, None], mask_w_idx + j].reshape(col.shape))


def masked_col2im_forward(col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor,
                          im: Tensor, height: int, width: int, channels: int) -> None:
    """Write results to the chosen pixels, as ``mmcv._ext.masked_col2im_forward``.

    Args:
        col (Tensor): (C, N).
        mask_h_idx (Tensor): Rows of the chosen pixels, int64, (N, ).
        mask_w_idx (Tensor): Columns of them, (N, ).
        im (Tensor): Filled in place there, (1, C, H, W).
        height (int): H.
        width (int): W.
        channels (int): C.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col
