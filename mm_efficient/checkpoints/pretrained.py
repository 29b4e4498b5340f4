"""Loading pretrained weights completely or not at all."""
import re
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader

from .conversion import CheckpointError, some, state_dicts, strip_wrappers
from .files import read_untrusted


def load_pretrained(backbone, checkpoint, prefix=None, map_location='cpu'):
    """Load ``init_cfg=dict(type='Pretrained', ...)`` of a backbone.

    MMEngine's own loading only warns about what does not fit, and without
    ``prefix`` would load nothing of a classifier's checkpoint. Here the
    backbone's part is found, and has to fit.

    Args:
        backbone (PyramidBackbone): Receives the weights.
        checkpoint (str): See :func:`match_pretrained`.
        prefix (str, optional): See :func:`match_pretrained`. Defaults to None.
        map_location (str): Device to read the file to. Defaults to 'cpu'.

    Raises:
        CheckpointError: A tensor is missing, left over or has another shape.
    """
    state_dict = match_pretrained(backbone, checkpoint, prefix, map_location)
    backbone.load_state_dict(state_dict, strict=False)
    print_log(
        f'{type(backbone).__name__}: loaded {len(state_dict)} tensors from '
        f'{checkpoint}', logger='current')


def match_pretrained(backbone, checkpoint, prefix=None, map_location='cpu'):
    """Read the weights of a backbone from a file, and check that they fit.

    Tensors may be left over only where the backbone lacks the module, such as
    a stage behind the last of ``out_indices``; and may be missing only where
    the backbone says so by ``DENSE_ONLY``.

    Args:
        backbone (PyramidBackbone): What the weights are for, not changed.
        checkpoint (str): What MMEngine's loader takes, including
            ``published://``.
        prefix (str, optional): Part of the file that holds the backbone.
            Defaults to None: ``'backbone.'`` if there is such a part, else
            the whole file.
        map_location (str): Device to read the file to. Defaults to 'cpu'.

    Returns:
        dict[str, Tensor]: The weights, by the backbone's own names.

    Raises:
        CheckpointError: A tensor is missing, left over or has another shape.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location)
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f'{checkpoint}: expected a dict of tensors, got '
            f'{type(loaded).__name__}; pass a checkpoint file')
    return match_state_dict(
        backbone, loaded.get('state_dict', loaded), checkpoint, prefix)


def match_state_dict(backbone, state_dict, source, prefix=None):
    """Find the weights of a backbone in a state dict, and check that they fit.

    Args:
        backbone (PyramidBackbone): What the weights are for, not changed.
        state_dict (dict[str, Tensor]): Weights of the backbone or of a whole model.
        source (str): Where they come from, for messages.
        prefix (str, optional): See :func:`match_pretrained`. Defaults to None.

    Returns:
        dict[str, Tensor]: The weights, by the backbone's own names.

    Raises:
        CheckpointError: A tensor is missing, left over or has another shape.
    """
    state_dict = backbone.adapt_weights(_select(state_dict, prefix))
    expected = backbone.state_dict()
    faults = {
        'missing': [
            key for key in expected if key not in state_dict
            # As in MMEngine: files of old PyTorch do not have the counter.
            and not key.endswith('num_batches_tracked') and
            not any(re.fullmatch(p, key) for p in backbone.DENSE_ONLY)
        ],
        'left over': [
            key for key in state_dict
            if key not in expected and _has_module(backbone, key)
        ],
        'of another shape': [
            f'{key} {tuple(value.shape)} for {tuple(expected[key].shape)}'
            for key, value in state_dict.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    listed = '; '.join(f'{len(names)} tensors {fault}: {some(names)}'
                       for fault, names in faults.items() if names)
    if listed:
        raise CheckpointError(
            f'{source} does not fit {type(backbone).__name__}; {listed}. '
            'Nothing was loaded. Check arch and prefix; a file of the '
            'original authors is named published://PATH')
    return state_dict


def _select(state_dict, prefix):
    """The backbone's tensors, without prefixes."""
    state_dict = {re.sub(r'^module\.', '', key): value
                  for key, value in state_dict.items()}
    if prefix is None:
        prefix = 'backbone.'
        if not any(key.startswith(prefix) for key in state_dict):
            return state_dict
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    return {key[len(prefix):]: value for key, value in state_dict.items()
            if key.startswith(prefix)}


def _has_module(backbone, key):
    """Whether the stage, or other direct child, that ``key`` is in exists."""
    name, *rest = key.split('.')
    if name == 'stages' and rest and rest[0].isdigit():
        return int(rest[0]) < len(backbone.stages)
    return name in dict(backbone.named_children())


def load_weights(model, source):
    """Load all weights of any model, such as a teacher, from somebody's file.

    Args:
        model (nn.Module): Receives the weights.
        source (str): See :func:`match_weights`.

    Raises:
        CheckpointError: See :func:`match_weights`.
    """
    model.load_state_dict(match_weights(model, source))


def match_weights(model, source):
    """Find in a file the weights that fit a model completely.

    Args:
        model (nn.Module): What the weights are for, not changed.
        source (str): File (``.pth``, ``.safetensors``) or address of a state dict,
            alone or nested under ``model``, ``state_dict``, ... Only tensors and
            plain data are read.

    Returns:
        dict[str, Tensor]: The weights.

    Raises:
        CheckpointError: If the file is missing or cannot be read, or a tensor is
            missing, left over or has another shape.
    """
    try:
        content = read_untrusted(source)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from None
    expected = model.state_dict()
    found = [strip_wrappers(tensors) for _, tensors in state_dicts(content)] \
        if isinstance(content, Mapping) else []
    if not found:
        raise CheckpointError(f'{source} holds no tensors; pass a checkpoint file')
    faults = [_misfits(expected, tensors) for tensors in found]
    best = min(range(len(found)), key=lambda i: sum(map(len, faults[i].values())))
    listed = '; '.join(f'{len(names)} tensors {fault}: {some(names, 4)}'
                       for fault, names in faults[best].items() if names)
    if listed:
        raise CheckpointError(f'{source} does not fit {type(model).__name__}; {listed}')
    weights = found[best]
    # files of old PyTorch do not have the counters of batch norms
    return {key: weights.get(key, value) for key, value in expected.items()}


def _misfits(expected, tensors):
    return {
        'missing': [key for key in expected if key not in tensors
                    and not key.endswith('num_batches_tracked')],
        'left over': [key for key in tensors if key not in expected],
        'of another shape': [
            f'{key} {tuple(value.shape)} for {tuple(expected[key].shape)}'
            for key, value in tensors.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
