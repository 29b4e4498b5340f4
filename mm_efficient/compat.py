"""Repairs that let stock OpenMMLab run on current PyTorch.

Each one is applied only where it is needed:

- :class:`ExtensionFinder` serves ``mmcv._ext`` from torchvision's operators where MMCV
  was installed without its compiled extension (``mmcv-lite``, ``onedl-mmcv``), so that
  ``mmdet.models`` and ``mmseg.models`` import and RetinaNet and Mask R-CNN train.
- :func:`repair_checkpoint_loading` lets MMEngine <= 0.10.7 read its own checkpoints on
  PyTorch >= 2.6.
"""
import contextlib
import importlib.abc
import importlib.util
import inspect
import os
import os.path as osp
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

try:
    import mmcv  # noqa: F401
    from mmengine.logging import print_log
    from mmengine.runner import CheckpointLoader
    from mmengine.utils import digit_version
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"mm_efficient needs OpenMMLab's packages: {error}. Install them with "
        "pip install 'mm-efficient[all]' 'mmcv-lite<2.2', or with pip install "
        "'mm-efficient[onedl]' for the OneDL continuation of them.",
        name=error.name) from error

EXTENSION = 'mmcv._ext'


def apply() -> None:
    """Apply every repair this environment needs. Can be called repeatedly."""
    if FINDER not in sys.meta_path:
        # last, so that a compiled extension is found first
        sys.meta_path.append(FINDER)
    if needs_checkpoint_repair():
        repair_checkpoint_loading()


# ----------------------------------------------------------------------------
# mmcv._ext backed by torchvision
#
# Argument names, their order and the in-place outputs follow the calls in
# mmcv/ops/{nms,roi_align,focal_loss}.py, the same in mmcv 2.1.0 and onedl-mmcv 2.3.6.
# torchvision is imported on first use, because classification does not need it.


def _upcast(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 to float32, because the kernels' half paths differ."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy NMS, as ``mmcv._ext.nms``.

    Args:
        boxes (Tensor): Corners x1, y1, x2, y2, (N, 4).
        scores (Tensor): One score per box, (N, ).
        iou_threshold (float): Boxes whose IoU with a better box is larger are removed.
        offset (int): 0 or 1; a box is ``x2 - x1 + offset`` wide.

    Returns:
        Tensor: Indices of the kept boxes, int64, best score first.
    """
    from torchvision.ops import nms as torchvision_nms
    # mmcv's sort is not stable. The same call visits boxes of equal score in the same
    # order.
    order = scores.sort(0, descending=True)[1]
    boxes = _upcast(boxes)[order]
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    rank = torch.arange(
        len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    # mmcv compares in float32, torchvision in float64: for an IoU of exactly 0.3 they
    # would decide differently.
    iou_threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return order[torchvision_nms(boxes, rank, iou_threshold)]


def _check_average_pooling(pool_mode: int) -> None:
    if pool_mode != 1:  # mmcv's number for 'avg'; 0 is 'max'
        raise NotImplementedError(
            "The torchvision-backed RoIAlign supports pool_mode='avg' only, got "
            f"'max'. {_INSTALL_HINT}")


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor,
                      argmax_x: Tensor, aligned_height: int, aligned_width: int,
                      spatial_scale: float, sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """RoIAlign with average pooling, as ``mmcv._ext.roi_align_forward``.

    Args:
        input (Tensor): Feature map, (B, C, H, W).
        rois (Tensor): Image index, x1, y1, x2, y2, (N, 5).
        output (Tensor): Filled in place, (N, C, aligned_height, aligned_width).
        argmax_y (Tensor): Unused, for max pooling only.
        argmax_x (Tensor): Unused, for max pooling only.
        aligned_height (int): Vertical bins per RoI.
        aligned_width (int): Horizontal bins per RoI.
        spatial_scale (float): Scale of the feature map relative to the image.
        sampling_ratio (int): Samples per bin and axis; 0 adapts to the RoI.
        pool_mode (int): 1, average.
        aligned (bool): Whether pixel centres are at half coordinates.

    Raises:
        NotImplementedError: If ``pool_mode`` is not average.
    """
    import torchvision  # noqa: F401  registers torch.ops.torchvision
    _check_average_pooling(pool_mode)
    features = _upcast(input)
    # Not torchvision.ops.roi_align: with deterministic algorithms it switches to a
    # Python implementation on CUDA, which runs out of memory in training.
    output.copy_(
        torch.ops.torchvision.roi_align(
            features, rois.to(features.dtype), spatial_scale, aligned_height,
            aligned_width, sampling_ratio, aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor,
                       argmax_x: Tensor, grad_input: Tensor, aligned_height: int,
                       aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Gradient of :func:`roi_align_forward` with respect to ``input``.

    Args:
        grad_output (Tensor): (N, C, aligned_height, aligned_width).
        grad_input (Tensor): Filled in place, (B, C, H, W).

    The other arguments are those of the forward pass.

    Raises:
        NotImplementedError: If ``pool_mode`` is not average.
    """
    import torchvision  # noqa: F401  registers torch.ops.torchvision
    _check_average_pooling(pool_mode)
    gradient = _upcast(grad_output)
    with _warn_if_not_deterministic():
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                gradient, rois.to(gradient.dtype), spatial_scale,
                aligned_height, aligned_width, *grad_input.shape,
                sampling_ratio, aligned))


@contextlib.contextmanager
def _warn_if_not_deterministic() -> Iterator[None]:
    """Warn about a nondeterministic CUDA kernel instead of raising an error.

    mmcv's own RoIAlign runs with ``randomness=dict(deterministic=True)`` too, and is
    no more deterministic.
    """
    strict = (
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled())
    if strict:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if strict:
            torch.use_deterministic_algorithms(True)


def _signed_logits(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits whose sigmoid is the probability of being right.

    Returns:
        tuple: ``positive`` (N, C), true at the sample's class; ``signed`` (N, C), new,
        float32 or float64, the logit there and minus the logit elsewhere.
    """
    logits = _upcast(input)
    classes = torch.arange(logits.size(1), device=target.device)
    positive = target[:, None] == classes  # all false for background
    return positive, torch.where(positive, logits, -logits)


def _scale_(values: Tensor, positive: Tensor, factors: tuple[float, float],
            target: Tensor, weight: Tensor) -> Tensor:
    """Multiply in place by the factors of positives and negatives and class weights."""
    of_positive, of_negative = (values.new_full((), factor) for factor in factors)
    values.mul_(torch.where(positive, of_positive, of_negative))
    if weight.numel():
        # class `num_classes` is background and has no weight
        weight = torch.cat([weight, weight.new_ones(1)]).to(values)
        values.mul_(weight[target][:, None])
    return values


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor,
                               output: Tensor, gamma: float, alpha: float) -> None:
    """Focal loss on logits, as ``mmcv._ext.sigmoid_focal_loss_forward``.

    ``torchvision.ops.sigmoid_focal_loss`` would not do: its gradient is not finite for
    confident logits and gamma < 1.

    Args:
        input (Tensor): Logits, (N, C).
        target (Tensor): Class of each sample, int64, (N, ); C means background.
        weight (Tensor): One weight per class, (C, ), applied to all logits of the
            samples of that class; or empty.
        output (Tensor): The loss, filled in place, (N, C).
        gamma (float): Exponent of the modulating factor.
        alpha (float): Weight of the sample's class; the others get 1 - alpha.
    """
    from torch.nn.functional import logsigmoid
    positive, signed = _signed_logits(input, target)  # p_t = sigmoid(signed)
    # In place: on a GPU these are hundreds of megabytes each
    loss = logsigmoid(signed)
    loss.mul_(signed.neg_().sigmoid_().pow_(gamma))
    output.copy_(_scale_(loss, positive, (-alpha, alpha - 1), target, weight))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Gradient of the focal loss with respect to the logits.

    Args:
        grad_input (Tensor): Filled in place, (N, C), for an upstream gradient of one;
            mmcv multiplies by the actual one.

    The other arguments are those of the forward pass.
    """
    from torch.nn.functional import logsigmoid
    positive, signed = _signed_logits(input, target)
    slope = logsigmoid(signed).mul_(signed.sigmoid()).mul_(-gamma)
    missing = signed.neg_().sigmoid_()  # 1 - p_t
    slope.add_(missing).mul_(missing.pow_(gamma))
    grad_input.copy_(_scale_(slope, positive, (-alpha, 1 - alpha), target, weight))


_OPERATORS = (nms, roi_align_forward, roi_align_backward,
              sigmoid_focal_loss_forward, sigmoid_focal_loss_backward)

_INSTALL_HINT = (
    'It needs MMCV with its compiled operators, built for this PyTorch: see '
    'https://mmcv.readthedocs.io/en/latest/get_started/installation.html. '
    'Once installed, a compiled mmcv takes precedence over the torchvision-backed '
    'one.')


def _missing_operator(name: str) -> Callable[..., None]:
    """Placeholder for an operator that torchvision does not have.

    mmcv looks up all names when ``mmcv.ops`` is imported, so the error must not be
    raised before the call.
    """
    if name.startswith('__'):  # Python's own look-ups, e.g. of __path__
        raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')

    def call(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'torchvision does not provide the mmcv operator {name!r}. '
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
        vars(module).update(
            {operator.__name__: operator for operator in _OPERATORS},
            # mmcv.utils.collect_env prints these two
            get_compiler_version=lambda: 'n/a (torchvision operators)',
            get_compiling_cuda_version=lambda: 'n/a',
            __getattr__=_missing_operator)
        rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
        if rank == '0':
            print_log(
                'mmcv is installed without compiled operators: mm_efficient provides '
                'nms, roi_align and sigmoid_focal_loss through torchvision; other '
                'mmcv operators raise an error.',
                logger='current')


FINDER = ExtensionFinder()

# ----------------------------------------------------------------------------
# Checkpoint loading


def needs_checkpoint_repair() -> bool:
    """Whether MMEngine's loader for local files refuses MMEngine's checkpoints.

    They hold more than tensors (message hub, NumPy arrays, scheduler states), which
    ``torch.load`` refuses by default since PyTorch 2.6. Later versions of MMEngine pass
    ``weights_only`` or wrap the call.
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return False
    loader = CheckpointLoader._get_checkpoint_loader('local.pth')
    try:
        source = inspect.getsource(loader)
    except OSError:  # installed without sources; the repair is harmless
        return loader is not load_from_local
    return 'torch.load(' in source and 'weights_only' not in source


def load_from_local(filename: str, map_location: Any) -> dict[str, Any]:
    """Load a local checkpoint as MMEngine did before PyTorch 2.6.

    As in MMEngine's own later fix, local files are unpickled in full, which can execute
    code: a local checkpoint is trusted as much as a config, which is a Python program
    too. Load files you do not trust with ``tools/model_converters/convert.py`` or
    ``published://``, which read tensors only. With ``TORCH_FORCE_WEIGHTS_ONLY_LOAD=1``
    in the environment PyTorch refuses everything but tensors here too.

    Args:
        filename (str): Path of the checkpoint.
        map_location (Any): See :func:`torch.load`.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'{filename} can not be found.')
    return torch.load(filename, map_location=map_location, weights_only=False)


def repair_checkpoint_loading() -> None:
    """Replace MMEngine's loader for local files with :func:`load_from_local`."""
    CheckpointLoader.register_scheme(
        prefixes='', loader=load_from_local, force=True)
