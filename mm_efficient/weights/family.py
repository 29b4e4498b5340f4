"""Families of published models: facts, published names, URLs of weights.

A family registers itself from its folder in :mod:`mm_efficient.models`. Everything that
serves all families (conversion, downloads, timm's names, the model zoo) reads
:data:`FAMILIES`.
"""
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from mmpretrain.registry import MODELS
from torch import Tensor

from ..errors import InputError

Tensors = Mapping[str, Tensor]


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message says why, and what to do."""


class Source(NamedTuple):
    """Published tensors that one tensor of ours is made of.

    Args:
        keys (tuple[str]): Published names; empty for a constant.
        make (Callable): Computes our tensor from them. Defaults to the single
            tensor itself.
    """

    keys: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor


@dataclass(frozen=True)
class Layout:
    """How a family reads a set of published tensors.

    Args:
        arch (str): A key of the backbone's ``ARCHS``.
        model (dict): Config of the ``ImageClassifier`` the weights belong to.
        sources (Callable[[str], Source]): From a key of that model's
            ``state_dict`` to the published tensors.
        variants (Sequence[str]): Variants whose models the weights fit.
        layout (str): Naming scheme of the tensors. Defaults to 'published'.
        ignored (dict[str, str]): Regular expression of published keys that
            our model does not need -> reason. Defaults to nothing.
        notes (Sequence[str]): What the user must know but the tensors do not reveal.
    """

    arch: str
    model: dict
    sources: Callable[[str], Source]
    variants: Sequence[str]
    layout: str = 'published'
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Reported:
    """Results reported by the authors of a family, not reproduced here.

    Args:
        figures (dict[str, dict]): By variant: ``parameters`` and ``macs`` of the
            classifier at 224 x 224, in the digits given; by method ('cls',
            'retinanet', ...), the metrics as MIM names them.
        sources (dict[str, str]): Method -> source of its figures.
        notes (tuple[str]): Remarks on the figures, in Markdown.
        deviates (frozenset[tuple[str, str]]): Variant and key of figures that differ
            from the released code, with the reason in ``notes``.
    """

    figures: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    deviates: Collection[tuple[str, str]] = frozenset()


def top1(value: float) -> dict[str, float]:
    """Top-1 accuracy on ImageNet-1K in percent, named as MIM does."""
    return {'Top 1 Accuracy': value}


def box_ap(value: float) -> dict[str, float]:
    """Box AP on COCO val2017 in percent."""
    return {'box AP': value}


def box_mask_ap(box: float, mask: float) -> dict[str, float]:
    """Box and mask AP on COCO val2017 in percent."""
    return {'box AP': box, 'mask AP': mask}


def miou(value: float) -> dict[str, float]:
    """Single-scale mIoU on ADE20K validation in percent."""
    return {'mIoU': value}


class Family(ABC):
    """A family of published models.

    Attributes:
        name (str): Name of the family.
        title (str): Title of the paper.
        paper (str): URL of the paper.
        venue (str): Where it was published.
        code (str): URL of the published code.
        licence (str): Licence of the published code.
        variants (Mapping[str, dict]): Variant, the prefix of its configs -> config of
            its backbone.
        dense (Mapping): What dense prediction adds to that config.
        downloads (Mapping[str, str]): Variant -> URL of its published weights,
            where they can be downloaded without a browser; see
            :func:`.download.fetch`.
        files (Mapping[str, tuple[str, ...]]): Variant -> names, without suffix, of the
            authors' own file, as on the page ``code``. Variants in neither mapping
            have never been published.
        entries (tuple[str]): Where the weights may be nested in a file, the
            preferred place first; places not listed come last.
        crops (Mapping[str, float]): Variant -> side of the square that the authors
            evaluate over the short side of the image, 0.875 where absent.
        reported (Reported): Results that the authors report.
        references (Mapping[str, str]): Variant -> name of its file in
            ``tests/reference``, where it differs from the variant's.
    """

    name: str
    title: str
    paper: str
    venue: str
    code: str
    licence: str
    variants: Mapping[str, dict]
    dense: Mapping[str, Any] = {}
    downloads: Mapping[str, str] = {}
    files: Mapping[str, tuple[str, ...]] = {}
    entries: tuple[str, ...] = (
        'model_ema', 'state_dict_ema', 'ema', 'model', 'state_dict')
    crops: Mapping[str, float] = {}
    reported = Reported({})
    references: Mapping[str, str] = {}

    @abstractmethod
    def recognise(self, tensors: Tensors) -> Layout | None:
        """Recognise tensors of this family by their names and shapes.

        Args:
            tensors (Mapping[str, Tensor]): Published tensors without wrappers'
                prefixes; some may be missing.

        Returns:
            Layout | None: None if they belong to another family.

        Raises:
            CheckpointError: They belong to this family but cannot be used,
                e.g. no variant has these depths.
        """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the backbone classes in MMPretrain's registry."""
        return tuple(dict.fromkeys(cfg['type'] for cfg in self.variants.values()))

    def classifier(self, backbone: Mapping[str, Any], classes: int = 1000) -> dict:
        """Make the config of the published classifier on a backbone.

        Args:
            backbone (Mapping[str, Any]): Config of the backbone, such as a value of
                ``variants``.
            classes (int): Number of classes. Defaults to 1000.

        Returns:
            dict: Config of an ``ImageClassifier``: here global average pooling and a
            linear layer.
        """
        archs = MODELS.get(backbone['type']).ARCHS
        return dict(
            type='ImageClassifier',
            backbone=dict(backbone),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=classes,
                      in_channels=archs[backbone['arch']]['embed_dims'][-1]))

    def find_arch(self, found: Any, archs: Mapping[Any, str], what: str) -> str:
        """Find the arch of a file.

        Args:
            found (Any): What distinguishes archs, such as the depths of the stages.
            archs (Mapping[Any, str]): Value of ``found`` for an arch -> its name.
            what (str): What ``found`` is, for the message.

        Returns:
            str: Name of the arch.

        Raises:
            CheckpointError: If no arch matches.
        """
        if found not in archs:
            known = ', '.join(f'{arch} {key}' for key, arch in archs.items())
            raise CheckpointError(
                f'{self.name} of no known variant: {what} {found}; published are '
                f'{known}. Get the complete file that the authors published')
        return archs[found]


FAMILIES: list[Family] = []
FamilyT = TypeVar('FamilyT', bound=type[Family])


def register_family(cls: FamilyT) -> FamilyT:
    """Class decorator that adds a :class:`Family` to :data:`FAMILIES`."""
    FAMILIES.append(cls())
    return cls


def num_classes(tensors: Tensors, *names: str) -> int:
    """Number of classes of a published classifier.

    Args:
        tensors (Mapping[str, Tensor]): Published tensors.
        *names (str): Names that the weight or bias of its last layer may have.

    Returns:
        int: Length of the first one found, or 1000 if there is none.
    """
    found = [tensors[name] for name in names if name in tensors]
    return len(found[0]) if found and found[0].ndim else 1000
