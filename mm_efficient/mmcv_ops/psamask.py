"""Attention masks of PSANet."""
import torch
from torch import Tensor


def _pick(maps: Tensor, rows: Tensor, columns: Tensor, height: int,
          width: int) -> Tensor:
    """Values of another channel at every pixel, zero where there is no such channel.

    Args:
        maps (Tensor): (B, height * width, H, W).
        rows (Tensor): Row of the channel for each output channel and pixel, (A, H).
        columns (Tensor): Column of it, (D, W).
        height (int): Rows of channels.
        width (int): Columns of channels.

    Returns:
        Tensor: (B, A * D, H, W).
    """
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    exists = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    channel = torch.where(exists, rows * width + columns, 0).flatten(0, 1)
    picked = maps.gather(1, channel.expand(len(maps), -1, -1, -1))
    return torch.where(exists.flatten(0, 1), picked, 0)


def psamask_forward(input: Tensor, output: Tensor, psa_type: int, num_: int,
                    h_feature: int, w_feature: int, h_mask: int, w_mask: int,
                    half_h_mask: int, half_w_mask: int) -> None:
    """From attention to a neighbourhood to attention to all pixels.

    Args:
        input (Tensor): (B, h_mask * w_mask, H, W); a channel is the offset to another
            pixel.
        output (Tensor): Filled in place, (B, H * W, H, W); a channel is that other
            pixel, or, to distribute, the pixel itself and H, W are the other one's.
        psa_type (int): 0 to collect, 1 to distribute.
        num_ (int): B.
        h_feature (int): H.
        w_feature (int): W.
        h_mask (int): Height of the neighbourhood.
        w_mask (int): Width of the neighbourhood.
        half_h_mask (int): Row of its centre.
        half_w_mask (int): Column of its centre.
    """
    y, x = (torch.arange(size, device=input.device)
            for size in (h_feature, w_feature))
    attention = _pick(input, y[:, None] - y + half_h_mask, x[:, None] - x + half_w_mask,
                      h_mask, w_mask)
    if psa_type == 1:
        attention = attention.flatten(2).transpose(1, 2).reshape(output.shape)
    output.copy_(attention)


def psamask_backward(grad_output: Tensor, grad_input: Tensor, psa_type: int, num_: int,
                     h_feature: int, w_feature: int, h_mask: int, w_mask: int,
                     half_h_mask: int, half_w_mask: int) -> None:
    """Gradient of :func:`psamask_forward`.

    Args:
        grad_output (Tensor): (B, H * W, H, W).
        grad_input (Tensor): Filled in place, (B, h_mask * w_mask, H, W).

    The other arguments are those of the forward pass.
    """
    if psa_type == 1:
        grad_output = grad_output.flatten(2).transpose(1, 2).reshape(grad_output.shape)
    y, x, i, j = (torch.arange(size, device=grad_output.device)
                  for size in (h_feature, w_feature, h_mask, w_mask))
    grad_input.copy_(_pick(grad_output, i[:, None] + y - half_h_mask,
                           j[:, None] + x - half_w_mask, h_feature, w_feature))
