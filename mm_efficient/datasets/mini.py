"""Miniature data sets of synthetic images in the on-disk formats of the three tasks.

:func:`generate_dataset` writes ``data/mini/coco`` (COCO), ``data/mini/ade`` (ADE20K)
and ``data/mini/imagenet`` (ImageNet folders), each on first use. A seed determines
everything.
"""
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from mmengine.utils import track_progress
from PIL import Image

from .scenes import GROUNDS, SHAPES, Scene, draw_scene, draw_single

MINI_ROOT = 'data/mini'
# Labels of ImageNet's layout are the alphabetical ranks of the folders
CLASSES = dict(coco=SHAPES, ade=GROUNDS + SHAPES, imagenet=tuple(sorted(SHAPES)))
# Lists, because MMDetection takes a tuple for a single colour
PALETTE = dict(
    coco=[(220, 20, 60), (0, 114, 189), (119, 171, 48), (237, 177, 32),
          (126, 47, 142)],
    ade=[(70, 130, 180), (128, 100, 60), (220, 20, 60), (0, 114, 189),
         (119, 171, 48), (237, 177, 32), (126, 47, 142)])

# (H, W) in pixels: landscape, portrait and square
IMAGE_SHAPES = ((192, 256), (208, 256), (176, 256), (256, 192), (224, 224))
CROWD_EVERY = 10  # one image in ten has a crowd, starting with the first
MARKER = 'mini.json'
VERSION = 2

T = TypeVar('T')
Mask = np.ndarray  # (H, W) bool


def polygons_of(mask: Mask) -> list[list[float]]:
    """Convert a mask to polygons, as COCO stores the visible part of an object.

    A polygon has no holes, so a part with a hole is cut in two through the hole.

    Args:
        mask (np.ndarray): Region, (H, W) bool.

    Returns:
        list[list[float]]: Polygons ``[x0, y0, x1, y1, ...]`` in pixels.
    """
    # At twice the size the outline runs a quarter of a pixel inside the true edge
    # instead of half a pixel: rasterising restores the mask exactly.
    twice: Any = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    contours, tree = cv2.findContours(twice, cv2.RETR_CCOMP,
                                      cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for i, contour in enumerate(contours):
        _, _, hole, parent = tree[0][i]
        if parent >= 0:
            continue
        if hole < 0:
            if len(contour) >= 3:
                points = (contour[:, 0] + 0.5) / 2
                polygons.append(points.ravel().tolist())
            continue
        part = np.zeros_like(twice)
        cv2.drawContours(part, contours, i, 1, cv2.FILLED)
        part = (part & twice)[::2, ::2].astype(bool)
        column = int(contours[hole][:, 0, 0].mean()) // 2 + 1
        left, right = part.copy(), part.copy()
        left[:, column:] = False
        right[:, :column] = False
        polygons += polygons_of(left) + polygons_of(right)
    return polygons


def _uncompressed_rle(mask: Mask) -> dict[str, Any]:
    """COCO's run-length encoding of a crowd region, as plain numbers."""
    flat = np.concatenate([[0], mask.astype(np.uint8).ravel(order='F'), [0]])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    if changes.size and changes[-1] == mask.size:
        counts = counts[:-1]
    return dict(size=list(mask.shape), counts=counts.tolist())


def _annotation(segmentation: Any, shape: tuple[int, int], label: int,
                iscrowd: bool) -> dict[str, Any]:
    """COCO annotation with area and box computed from its segmentation."""
    from pycocotools import mask as mask_utils  # installed for detection only

    rle = mask_utils.frPyObjects(segmentation, *shape)
    rle = mask_utils.merge(rle) if isinstance(rle, list) else rle
    return dict(
        segmentation=segmentation,
        area=float(mask_utils.area(rle)),
        bbox=[float(v) for v in mask_utils.toBbox(rle)],
        category_id=label + 1,
        iscrowd=int(iscrowd))


def _annotations(scene: Scene) -> list[dict[str, Any]]:
    """COCO annotations of a scene, without image and annotation ids."""
    shape = scene.image.shape[:2]
    annotations = [
        _annotation(polygons_of(mask), shape, label, False)
        for mask, label in zip(scene.masks, scene.labels)
    ]
    if scene.crowd is not None:
        rle = _uncompressed_rle(scene.crowd)
        annotations.append(_annotation(rle, shape, scene.crowd_label, True))
    return annotations


def _label_map(scene: Scene) -> np.ndarray:
    """ADE20K label map: 0 other (crowds), 1.. the classes, (H, W) uint8."""
    label_map = scene.ground + 1
    if scene.crowd is not None:
        label_map[scene.crowd] = 0
    for mask, label in zip(scene.masks, scene.labels):
        label_map[mask] = len(GROUNDS) + label + 1
    return label_map.astype(np.uint8)


def _shape_of(index: int) -> tuple[int, int]:
    return IMAGE_SHAPES[index % len(IMAGE_SHAPES)]


def _save_jpeg(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image).save(path, format='JPEG', quality=92)


def _scenes(seed: int, split: str, count: int,
            folder: str) -> Iterator[tuple[int, Scene]]:
    """Scenes of a split, numbered from 1."""
    def draw(index: int) -> Scene:
        rng = np.random.default_rng([seed, split == 'val', index])
        return draw_scene(rng, _shape_of(index), index % CROWD_EVERY == 0)

    return enumerate(_with_progress(draw, count, folder), 1)


def _with_progress(function: Callable[[int], T], count: int, folder: str) -> list[T]:
    print(f'Generating {count} images for {folder}', flush=True)
    return track_progress(function, list(range(count)))


def _write_coco(root: Path, seed: int, counts: dict[str, int]) -> None:
    (root / 'annotations').mkdir()
    for split, count in counts.items():
        folder = root / f'{split}2017'
        folder.mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, scene in _scenes(seed, split, count, folder.name):
            name = f'{number:012d}.jpg'
            _save_jpeg(scene.image, folder / name)
            height, width = scene.image.shape[:2]
            images.append(
                dict(id=number, file_name=name, height=height, width=width))
            for annotation in _annotations(scene):
                annotations.append(
                    dict(id=len(annotations) + 1, image_id=number, **annotation))
        content = dict(
            info=dict(description='mm_efficient miniature COCO'),
            licenses=[],
            images=images,
            annotations=annotations,
            categories=[
                dict(id=i, name=name, supercategory='shape')
                for i, name in enumerate(SHAPES, 1)
            ])
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content))


def _write_ade(root: Path, seed: int, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        long_name = dict(train='training', val='validation')[split]
        for kind in ('images', 'annotations'):
            (root / kind / long_name).mkdir(parents=True)
        for number, scene in _scenes(seed, split, count, long_name):
            name = f'ADE_{split}_{number:08d}'
            _save_jpeg(scene.image, root / 'images' / long_name / f'{name}.jpg')
            Image.fromarray(_label_map(scene)).save(
                root / 'annotations' / long_name / f'{name}.png')


def _write_imagenet(root: Path, seed: int, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        for name in SHAPES:
            (root / split / name).mkdir(parents=True)

        def draw(index: int, split: str = split) -> np.ndarray:
            rng = np.random.default_rng([seed, split == 'val', 1, index])
            return draw_single(rng, _shape_of(index // len(SHAPES)),
                               index % len(SHAPES))

        for index, image in enumerate(_with_progress(draw, count, split)):
            name = SHAPES[index % len(SHAPES)]
            _save_jpeg(image, root / split / name / f'{name}_{index:05d}.JPEG')


_WRITERS = dict(coco=_write_coco, ade=_write_ade, imagenet=_write_imagenet)


def _is_complete(target: Path, wanted: dict[str, int]) -> bool:
    """Whether a folder holds the data set; refuse folders that are not ours."""
    if not target.exists():
        return False
    try:
        return json.loads((target / MARKER).read_text()) == wanted
    except (OSError, ValueError):
        raise FileExistsError(
            f'{target} exists but is not a generated data set (it has no readable '
            f'{MARKER}). Move it away or choose another folder.') from None


def generate_dataset(name: str, root: str | Path = MINI_ROOT, num_train: int = 200,
                     num_val: int = 50, seed: int = 0) -> Path:
    """Generate a miniature data set unless it exists.

    It is written to a temporary folder and moved to its place when complete, so a data
    set that exists is complete.

    Args:
        name (str): ``'coco'``, ``'ade'`` or ``'imagenet'``.
        root (str | Path): Parent folder. Defaults to ``'data/mini'``.
        num_train (int): Number of training images. Defaults to 200.
        num_val (int): Number of validation images. Defaults to 50.
        seed (int): Determines all images. Defaults to 0.

    Returns:
        Path: Folder of the data set.

    Raises:
        ValueError: If ``name`` is unknown or a split would be empty.
        FileExistsError: If the folder exists but was not generated.
    """
    if name not in _WRITERS:
        raise ValueError(f'Unknown miniature data set {name!r}, expected one '
                         f'of {sorted(_WRITERS)}')
    if min(num_train, num_val) < 1:
        raise ValueError('Each split needs at least one image, got '
                         f'num_train={num_train} and num_val={num_val}')
    counts = dict(train=num_train, val=num_val)
    wanted = dict(version=VERSION, seed=seed, **counts)
    root = Path(root)
    target = root / name
    if _is_complete(target, wanted):
        return target
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{name}-', dir=root))
    try:
        draft.chmod(0o755)  # mkdtemp makes it private
        _WRITERS[name](draft, seed, counts)
        (draft / MARKER).write_text(json.dumps(wanted))
        if not _is_complete(target, wanted):  # another process may have finished
            _move_into_place(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _move_into_place(draft: Path, target: Path) -> None:
    """Swap a finished folder in, and only then remove an older one."""
    outdated = draft.with_name(draft.name + '-outdated')
    if target.exists():
        os.replace(target, outdated)
    try:
        os.replace(draft, target)
    except OSError:  # another process was faster
        if not (target / MARKER).exists():
            raise
    shutil.rmtree(outdated, ignore_errors=True)
