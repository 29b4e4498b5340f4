"""Synthetic images of textured shapes, generated from a seed.

A scene has a sky above and a ground below a slanted horizon, and on them shapes of
several sizes that occlude each other. A class is an outline and a kind of texture; as
with real objects, neither colour nor position reveals it.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

SHAPES = ('circle', 'square', 'triangle', 'star', 'ring')
GROUNDS = ('sky', 'ground')

# Side of an object relative to the shorter side of the image
SIZES = dict(small=(0.16, 0.26), medium=(0.26, 0.45), large=(0.45, 0.75))
SUPERSAMPLE = 4  # outlines are filled at this scale for soft edges
MIN_VISIBLE = 0.35  # objects of which less is visible are removed

Shape = tuple[int, int]


@dataclass
class Scene:
    """A synthetic image with its ground truth.

    Attributes:
        image (np.ndarray): RGB, (H, W, 3) uint8.
        ground (np.ndarray): Index into :data:`GROUNDS`, (H, W) uint8.
        masks (list[np.ndarray]): Visible part of each object, (H, W) bool.
        labels (list[int]): Index into :data:`SHAPES` of each object.
        crowd (np.ndarray | None): Region of a crowd, objects of one class too small
            and dense to separate, (H, W) bool.
        crowd_label (int): Class of the crowd. Defaults to -1, no crowd.
    """
    image: np.ndarray
    ground: np.ndarray
    masks: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: np.ndarray | None = None
    crowd_label: int = -1


def _noise(rng: np.random.Generator, shape: Shape, cells: int) -> np.ndarray:
    """Smooth noise in [-1, 1] with about ``cells`` bumps along each side."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _grid(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates from 0 to 1: y and x, each (H, W)."""
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    return y / shape[0], x / shape[1]


def _texture(rng: np.random.Generator, label: int, shape: Shape) -> np.ndarray:
    """Brightness pattern of a class, about [-1, 1], (H, W)."""
    y, x = _grid(shape)
    angle = rng.uniform(0, np.pi)
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    turns = rng.uniform(12, 20)
    if SHAPES[label] == 'circle':  # a ball lit from one side
        return 1.5 * (u - u.mean())
    if SHAPES[label] == 'square':  # checkers
        return np.sign(np.sin(turns * u * np.pi) * np.sin(turns * v * np.pi))
    if SHAPES[label] == 'triangle':  # stripes
        return np.sign(np.sin(1.6 * turns * u * np.pi))
    if SHAPES[label] == 'star':  # speckles
        return 1.4 * rng.uniform(-1, 1, shape).astype(np.float32)
    return np.sin(2 * turns * u * np.pi) * 0.4  # ring: soft waves


def _outline(rng: np.random.Generator, label: int, size: float) -> list[np.ndarray]:
    """Polygons of a shape centred on 0, outer one first, ``size`` in pixels."""
    radius = size / 2
    turn = rng.uniform(0, 2 * np.pi)
    stretch = rng.uniform(0.85, 1.0)
    corners = dict(circle=48, ring=48, square=4, triangle=3, star=10)[SHAPES[label]]
    inner = 0.45 if SHAPES[label] == 'star' else 1.0
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = np.where(np.arange(corners) % 2, inner, 1.0)
    outer = np.stack([np.cos(angles) * radii * stretch,
                      np.sin(angles) * radii], 1) * radius
    rotation = np.array([[np.cos(turn), -np.sin(turn)],
                         [np.sin(turn), np.cos(turn)]])
    outer = outer @ rotation
    return [outer, outer * 0.5] if SHAPES[label] == 'ring' else [outer]


def _coverage(outline: Sequence[np.ndarray], centre: np.ndarray,
              shape: Shape) -> np.ndarray:
    """Fraction of each pixel inside an outline, (H, W) in [0, 1]."""
    big = np.zeros([s * SUPERSAMPLE for s in shape], np.uint8)
    points = [np.round((ring + centre) * SUPERSAMPLE).astype(np.int32)
              for ring in outline]
    cv2.fillPoly(big, points, 255)  # even-odd: the inner ring is a hole
    small = cv2.resize(big, shape[::-1], interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def _background(rng: np.random.Generator,
                shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Sky over ground: the image, (H, W, 3) in [0, 1], and the label map of the two."""
    y, x = _grid(shape)
    horizon = rng.uniform(0.3, 0.65) + rng.uniform(-0.2, 0.2) * (x - 0.5)
    horizon = horizon + 0.03 * _noise(rng, shape, 6)
    ground = (y > horizon).astype(np.uint8)
    sky_low, sky_high, soil = rng.uniform(0.25, 0.85, (3, 3))
    sky_high[2] += 0.1  # the sky is bluish, the ground is not
    soil[2] *= 0.6
    share = y[..., None]
    sky = sky_low * share + sky_high * (1 - share)
    sky = sky + 0.06 * _noise(rng, shape, 4)[..., None]
    rough = np.sum([_noise(rng, shape, cells) / weight
                    for cells, weight in ((5, 1), (12, 1.5), (40, 1.5))], 0)
    soil = soil * (0.8 + 0.3 * share) + 0.09 * rough[..., None]
    return np.where(ground[..., None] > 0, soil, sky), ground


def _paint(rng: np.random.Generator, image: np.ndarray, coverage: np.ndarray,
           label: int) -> np.ndarray:
    """Draw an object and its shadow over the image."""
    shape = coverage.shape
    below = image[coverage > 0.5].mean(0)
    colour = rng.uniform(0.1, 0.9, 3)
    while np.abs(colour - below).mean() < 0.2:  # keep it visible
        colour = rng.uniform(0.1, 0.9, 3)
    shift = np.array([[1, 0, rng.integers(2, 5)], [0, 1, rng.integers(2, 5)]],
                     np.float32)
    shadow = cv2.GaussianBlur(
        cv2.warpAffine(coverage, shift, shape[::-1]), (0, 0), 2.5)
    image = image * (1 - 0.45 * shadow[..., None])
    body = colour + 0.18 * _texture(rng, label, shape)[..., None]
    alpha = coverage[..., None]
    return image * (1 - alpha) + body * alpha


def _develop(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Apply what a camera adds: vignette, exposure, blur and sensor noise."""
    shape = image.shape[:2]
    y, x = _grid(shape)
    image = image * (1.08 - 0.5 * ((x - 0.5)**2 + (y - 0.5)**2))[..., None]
    image = cv2.GaussianBlur(image * rng.uniform(0.85, 1.1), (0, 0), 0.6)
    image = image + rng.normal(0, 0.018, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _place(rng: np.random.Generator, shape: Shape, label: int,
           span: tuple[float, float]) -> np.ndarray:
    """Coverage of an object of random size at a random position."""
    size = rng.uniform(*span) * min(shape)
    margin = 0.35 * size  # objects may extend a little beyond the image
    centre = np.array([rng.uniform(margin, side - margin) for side in shape[::-1]])
    return _coverage(_outline(rng, label, size), centre, shape)


def _crowd(rng: np.random.Generator, shape: Shape) -> tuple[int, list[np.ndarray]]:
    """Class and coverages of many small objects close together."""
    label = int(rng.integers(len(SHAPES)))
    size = rng.uniform(0.07, 0.1) * min(shape)
    centre = np.array([rng.uniform(0.25, 0.75) * side for side in shape[::-1]])
    parts = [_coverage(_outline(rng, label, size),
                       centre + rng.normal(0, 1.4 * size, 2), shape)
             for _ in range(int(rng.integers(14, 22)))]
    return label, [part for part in parts if (part > 0.5).any()]


def _visible(coverages: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Visible part of every object, (H, W) bool; later objects occlude earlier ones."""
    occluded = np.zeros((), bool)
    masks = []
    for coverage in reversed(coverages):
        mask = coverage > 0.5
        masks.append(mask & ~occluded)
        occluded = occluded | mask
    return masks[::-1]


def _drop_hidden(labels: list[int], coverages: list[np.ndarray],
                 minimum: int = 48) -> None:
    """Remove objects that are mostly hidden, starting with the lowest, in place."""
    while coverages:
        for i, mask in enumerate(_visible(coverages)):
            whole = (coverages[i] > 0.5).sum()
            if mask.sum() < max(minimum, MIN_VISIBLE * whole):
                del labels[i], coverages[i]
                break
        else:
            break


def draw_scene(rng: np.random.Generator, shape: Shape,
               with_crowd: bool = False) -> Scene:
    """Generate a scene with one to five objects.

    Args:
        rng (np.random.Generator): Source of all randomness.
        shape (tuple[int, int]): Height and width in pixels.
        with_crowd (bool): Whether to add a crowd behind the objects.
            Defaults to False.

    Returns:
        Scene: The image with its ground truth.
    """
    image, ground = _background(rng, shape)
    crowd_label, members = _crowd(rng, shape) if with_crowd else (-1, [])
    for member in members:
        image = _paint(rng, image, member, crowd_label)
    spans = list(SIZES.values())
    labels: list[int] = []
    coverages: list[np.ndarray] = []
    for _ in range(int(rng.integers(1, 6))):
        labels.append(int(rng.integers(len(SHAPES))))
        span = spans[rng.choice(len(spans), p=(0.35, 0.4, 0.25))]
        coverages.append(_place(rng, shape, labels[-1], span))
    _drop_hidden(labels, coverages)
    for label, coverage in zip(labels, coverages):
        image = _paint(rng, image, coverage, label)
    crowd = None
    if members:
        crowd = np.max(members, 0) > 0.5
        for coverage in coverages:
            crowd &= coverage <= 0.5
    return Scene(_develop(rng, image), ground, _visible(coverages), labels,
                 crowd, crowd_label)


def draw_single(rng: np.random.Generator, shape: Shape, label: int) -> np.ndarray:
    """Generate an image of one large object, for classification.

    Args:
        rng (np.random.Generator): Source of all randomness.
        shape (tuple[int, int]): Height and width in pixels.
        label (int): Index into :data:`SHAPES`.

    Returns:
        np.ndarray: RGB, (H, W, 3) uint8.
    """
    image, _ = _background(rng, shape)
    coverage = _place(rng, shape, label, (0.6, 0.95))
    return _develop(rng, _paint(rng, image, coverage, label))
