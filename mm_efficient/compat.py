"""The few repairs that let stock OpenMMLab run on current PyTorch.

Each one is applied only where it is needed and stays out of the way elsewhere:

- :class:`ExtensionFinder` serves ``mmcv._ext`` from torchvision's operators
  where MMCV was installed without its compiled extension (``mmcv-lite``,
  ``onedl-mmcv``), so that ``mmdet.models`` and ``mmseg.models`` import and
  RetinaNet and Mask R-CNN train.
- :func:`repair_checkpoint_loading` lets MMEngine <= 0.10.7 read its own
  checkpoints on PyTorch >= 2.6.
"""
import contextlib
import importlib.abc
import importlib.util
import inspect
import os
import os.path as osp
import sys

import torch

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
    """Apply every repair this environment needs; calling it twice is fine."""
    if FINDER not in sys.meta_path:
        # Last: whatever else can find a compiled extension is asked before.
        sys.meta_path.append(FINDER)
    if needs_checkpoint_repair():
        repair_checkpoint_loading()


# ----------------------------------------------------------------------------
# mmcv._ext backed by torchvision
#
# Argument names, their order and what is written in place follow the calls in
# mmcv/ops/{nms,roi_align,focal_loss}.py, the same in mmcv 2.1.0 and
# onedl-mmcv 2.3.6. torchvision is imported on first use because a project
# without detection or segmentation never needs it here.


def _upcast(tensor):
    """float16 and bfloat16 to float32: the kernels' own half paths differ."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor


def nms(boxes, scores, iou_threshold, offset):
    """Greedy non-maximum suppression, as ``mmcv._ext.nms``.

    Args:
        boxes (Tensor): Corners x1, y1, x2, y2, of shape (N, 4).
        scores (Tensor): One score per box, of shape (N, ).
        iou_threshold (float): A box that overlaps a kept, better one by more
            than this is dropped.
        offset (int): 0 or 1; a box is ``x2 - x1 + offset`` wide.

    Returns:
        Tensor: Indices of the kept boxes, int64, best score first.
    """
    from torchvision.ops import nms as torchvision_nms
    # mmcv sorts without asking for a stable order; repeating its very call
    # keeps boxes with equal scores in the order it would visit them.
    order = scores.sort(0, descending=True)[1]
    boxes = _upcast(boxes)[order]
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    rank = torch.arange(
        len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    # mmcv compares with the threshold as float32, torchvision as float64:
    # for an overlap of exactly 0.3 the two would decide differently.
    iou_threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return order[torchvision_nms(boxes, rank, iou_threshold)]


def _check_average_pooling(pool_mode):
    if pool_mode != 1:  # mmcv's number for 'avg'; 0 is 'max'
        raise NotImplementedError(
            "The torchvision-backed RoIAlign has pool_mode='avg' only, got "
            f"'max'. {_INSTALL_HINT}")


def roi_align_forward(input, rois, output, argmax_y, argmax_x, aligned_height,
                      aligned_width, spatial_scale, sampling_ratio, pool_mode,
                      aligned):
    """RoIAlign with average pooling, as ``mmcv._ext.roi_align_forward``.

    Args:
        input (Tensor): Feature map of shape (B, C, H, W).
        rois (Tensor): Image index, x1, y1, x2, y2, of shape (N, 5).
        output (Tensor): Filled in place, of shape
            (N, C, aligned_height, aligned_width).
        argmax_y (Tensor): Unused; needed by max pooling only.
        argmax_x (Tensor): Unused; needed by max pooling only.
        aligned_height (int): Bins per RoI, vertically.
        aligned_width (int): Bins per RoI, horizontally.
        spatial_scale (float): Feature pixels per image pixel.
        sampling_ratio (int): Samples per bin and axis; 0 adapts to the RoI.
        pool_mode (int): 1, average.
        aligned (bool): Whether pixel centres are at half coordinates.

    Raises:
        NotImplementedError: If ``pool_mode`` asks for max pooling.
    """
    from torchvision.ops import roi_align
    _check_average_pooling(pool_mode)
    features = _upcast(input)
    output.copy_(
        roi_align(features, rois.to(features.dtype),
                  (aligned_height, aligned_width), spatial_scale,
                  sampling_ratio, aligned))


def roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input,
                       aligned_height, aligned_width, spatial_scale,
                       sampling_ratio, pool_mode, aligned):
    """Gradient of :func:`roi_align_forward` with respect to ``input``.

    Args:
        grad_output (Tensor): (N, C, aligned_height, aligned_width).
        grad_input (Tensor): Filled in place, of shape (B, C, H, W).

    The other arguments are those of the forward pass.

    Raises:
        NotImplementedError: If ``pool_mode`` asks for max pooling.
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
def _warn_if_not_deterministic():
    """Make PyTorch warn where it would refuse a CUDA kernel without a
    deterministic form: mmcv's own RoIAlign runs under
    ``randomness=dict(deterministic=True)`` too, and just as unordered.
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


def _focal_terms(input, target, weight, alpha):
    """What the focal loss and its gradient share.

    Returns:
        tuple: ``positive`` (N, C), true at the sample's own class;
        ``factor`` (N, C), minus alpha or minus (1 - alpha), times the
        class weight; ``logits`` (N, C), float32 or float64.
    """
    logits = _upcast(input)
    num_classes = logits.size(1)
    classes = torch.arange(num_classes, device=target.device)
    positive = target[:, None] == classes  # all false for background
    factor = torch.where(positive, logits.new_tensor(-alpha),
                         logits.new_tensor(alpha - 1))
    if weight.numel():
        # The class `num_classes` is background and has no weight of its own.
        weight = torch.cat([weight, weight.new_ones(1)]).to(logits)
        factor = factor * weight[target][:, None]
    return positive, factor, logits


def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Focal loss on logits, as ``mmcv._ext.sigmoid_focal_loss_forward``.

    Written out rather than taken from ``torchvision.ops.sigmoid_focal_loss``,
    whose gradient is not finite for confident logits and gamma < 1.

    Args:
        input (Tensor): Logits of shape (N, C).
        target (Tensor): Class of each sample, int64 of shape (N, ); C means
            background.
        weight (Tensor): One weight per class, of shape (C, ), applied to
            all logits of the samples of that class; or empty.
        output (Tensor): The loss, filled in place, of shape (N, C).
        gamma (float): Exponent of the modulating factor.
        alpha (float): Weight of the sample's own class; the others get
            1 - alpha.
    """
    from torch.nn.functional import logsigmoid
    positive, factor, logits = _focal_terms(input, target, weight, alpha)
    signed = torch.where(positive, logits, -logits)  # p_t = sigmoid(signed)
    output.copy_(factor * (-signed).sigmoid()**gamma * logsigmoid(signed))


def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma,
                                alpha):
    """Gradient of the focal loss with respect to the logits.

    Args:
        grad_input (Tensor): Filled in place, of shape (N, C), for a gradient
            of one per loss; mmcv multiplies the rest.

    The other arguments are those of the forward pass.
    """
    from torch.nn.functional import logsigmoid
    positive, factor, logits = _focal_terms(input, target, weight, alpha)
    signed = torch.where(positive, logits, -logits)
    p_t, missing = signed.sigmoid(), (-signed).sigmoid()
    slope = missing**gamma * (missing - gamma * p_t * logsigmoid(signed))
    grad_input.copy_(factor * torch.where(positive, slope, -slope))


_OPERATORS = (nms, roi_align_forward, roi_align_backward,
              sigmoid_focal_loss_forward, sigmoid_focal_loss_backward)

_INSTALL_HINT = (
    'It needs MMCV with its compiled operators, built for this PyTorch: see '
    'https://mmcv.readthedocs.io/en/latest/get_started/installation.html. '
    'A compiled mmcv is used instead of the torchvision-backed one as soon as '
    'it is installed.')


def _missing_operator(name):
    """Operator of the stand-in extension that torchvision cannot serve.

    mmcv looks up all names when ``mmcv.ops`` is imported, so the error has to
    wait for the call.
    """
    if name.startswith('__'):  # Python's own probing, e.g. for __path__
        raise AttributeError(f'module {EXTENSION!r} has no attribute {name!r}')

    def call(*args, **kwargs) -> None:
        raise NotImplementedError(
            f'The mmcv operator {name!r} is not among those that torchvision '
            f'provides. {_INSTALL_HINT}')

    return call


class ExtensionFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that serves ``mmcv._ext`` when nothing else can."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == EXTENSION:
            return importlib.util.spec_from_loader(fullname, self)

    def exec_module(self, module):
        for operator in _OPERATORS:
            setattr(module, operator.__name__, operator)
        # mmcv.utils.collect_env prints these two.
        module.get_compiler_version = lambda: 'n/a (torchvision operators)'
        module.get_compiling_cuda_version = lambda: 'n/a'
        module.__getattr__ = _missing_operator
        rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
        if rank == '0':
            print_log(
                'mmcv was installed without compiled operators: mm_efficient '
                'serves nms, roi_align and sigmoid_focal_loss from '
                'torchvision, any other mmcv operator raises an error.',
                logger='current')


FINDER = ExtensionFinder()

# ----------------------------------------------------------------------------
# Checkpoint loading


def needs_checkpoint_repair():
    """Whether MMEngine's loader for local files refuses its own checkpoints.

    They hold more than tensors (message hub, NumPy arrays, scheduler states),
    which ``torch.load`` refuses by default since PyTorch 2.6. MMEngine's
    successors say ``weights_only`` themselves or wrap the call.
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return False
    loader = CheckpointLoader._get_checkpoint_loader('local.pth')
    try:
        source = inspect.getsource(loader)
    except OSError:  # installed without sources; the repair does no harm
        return loader is not load_from_local
    return 'torch.load(' in source and 'weights_only' not in source


def load_from_local(filename, map_location):
    """Load a local checkpoint the way MMEngine did before PyTorch 2.6.

    As in MMEngine's own later fix, local files are unpickled in full, and a
    pickle can run code: a local checkpoint is trusted as much as the config
    beside it, which is a Python program as well. Files from strangers belong
    through ``tools/model_converters/convert.py`` or ``published://``, which
    read tensors only. ``TORCH_FORCE_WEIGHTS_ONLY_LOAD=1`` in the environment
    makes PyTorch refuse everything else here too.

    Args:
        filename (str): Path of the checkpoint.
        map_location (str | None): Same as in :func:`torch.load`.

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
    """Replace MMEngine's loader for local files by :func:`load_from_local`."""
    CheckpointLoader.register_scheme(
        prefixes='', loader=load_from_local, force=True)
