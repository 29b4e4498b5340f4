"""Comparing state dicts: which tensors are missing, unexpected or of another shape."""
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

DEEPEST = 8  # levels of a checkpoint to look at; a dict may hold itself


@dataclass(frozen=True)
class Mismatch:
    """Where a state dict differs from the one that a model expects.

    Args:
        missing (list[str]): Expected keys that are not given.
        unexpected (list[str]): Given keys that are not expected.
        reshaped (list[str]): Keys with both shapes, given and expected.
    """

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        return '; '.join(
            f'{len(names)} tensors {fault}: {list_some(names, 4)}'
            for fault, names in (('missing', self.missing),
                                 ('unexpected', self.unexpected),
                                 ('of another shape', self.reshaped)) if names)


def compare_state_dicts(expected: Mapping[str, Tensor],
                        given: Mapping[str, Any]) -> Mismatch:
    """Compare names and shapes.

    Counters of batch norms may be missing, as in MMEngine: files of old PyTorch
    versions do not have them.

    Args:
        expected (Mapping[str, Tensor]): State dict of the model.
        given (Mapping[str, Any]): Tensors of a file.

    Returns:
        Mismatch: Empty if they fit.
    """
    return Mismatch(
        missing=[key for key in expected
                 if key not in given and not key.endswith('num_batches_tracked')],
        unexpected=[key for key in given if key not in expected],
        reshaped=[
            f'{key} {tuple(value.shape)} for {tuple(expected[key].shape)}'
            for key, value in given.items()
            if key in expected and value.shape != expected[key].shape])


def nested_state_dicts(node: Mapping, path: tuple[str, ...] = ()
                       ) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Find the dicts with tensors inside a checkpoint.

    Args:
        node (Mapping): The checkpoint.
        path (tuple[str]): Keys that lead to ``node``. Defaults to ().

    Yields:
        tuple[tuple[str], dict[str, Tensor]]: Path and tensors, outermost first.
    """
    tensors = {key: value for key, value in node.items()
               if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in node.items() if len(path) < DEEPEST else ():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from nested_state_dicts(value, (*path, key))


def stored_weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the weights in a checkpoint of MMEngine or timm.

    Args:
        checkpoint (Mapping): Content of the file.

    Returns:
        Mapping: The state dict, averaged weights before others as in timm; the
        content itself if it is none of these.
    """
    for entry in ('state_dict_ema', 'model_ema', 'state_dict', 'model'):
        if isinstance(checkpoint.get(entry), Mapping):
            return checkpoint[entry]
    return checkpoint


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefixes that DistributedDataParallel and compile add to keys."""
    return {re.sub(r'^((module|_orig_mod)\.)+', '', key): value
            for key, value in tensors.items()}


def list_some(names: Iterable[Any], limit: int = 10) -> str:
    """List the first names, and their number if there are more.

    Args:
        names (Iterable): Names.
        limit (int): How many to list. Defaults to 10.

    Returns:
        str: Such as ``'a, b, ... (7 in all)'``.
    """
    names = [str(name) for name in names]
    more = f', ... ({len(names)} in all)' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
