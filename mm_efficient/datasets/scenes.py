"""Photograph-like scenes of textured shapes, drawn from a seed.

A scene is a picture in two grounds (sky above, ground below a slanted
horizon) on which shapes of several sizes lie over each other. Every class has
one outline and one kind of texture in any colour, so that, as with real
objects, neither the colour nor the place gives the class away.
"""
from dataclasses import dataclass, field

import cv2
import numpy as np

SHAPES = ('circle', 'square', 'triangle', 'star', 'ring')
GROUNDS = ('sky', 'ground')

# Side of an object relative to the shorter side of the picture.
SIZES = dict(small=(0.16, 0.26), medium=(0.26, 0.45), large=(0.45, 0.75))
SUPERSAMPLE = 4  # outlines are filled at this scale, for soft edges
MIN_VISIBLE = 0.35  # objects hidden more than this are taken out


@dataclass
class Scene:
    """One picture and everything that is known about it.

    Attributes:
        image (np.ndarray): RGB picture, (H, W, 3) uint8.
        ground (np.ndarray): Index into :data:`GROUNDS`, (H, W) uint8.
        masks (list[np.ndarray]): Visible part of each object, (H, W) bool.
        labels (list[int]): Index into :data:`SHAPES` of each object.
        crowd (np.ndarray | None): Region covered by a flock of objects too
            small and dense to be told apart, (H, W) bool.
        crowd_label (int): Class of the flock. Defaults to -1 (no flock).
    """
    image: np.ndarray
    ground: np.ndarray
    masks: list = field(default_factory=list)
    labels: list = field(default_factory=list)
    crowd: np.ndarray | None = None
    crowd_label: int = -1


def _noise(rng, shape, cells):
    """Smooth noise in [-1, 1] with about ``cells`` bumps along each side."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _grid(shape):
    """Coordinates from 0 to 1: two arrays of the given shape, y and x."""
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    return y / shape[0], x / shape[1]


def _texture(rng, label, shape):
    """Brightness pattern in about [-1, 1] of a class, (H, W)."""
    y, x = _grid(shape)
    angle = rng.uniform(0, np.pi)
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    turns = rng.uniform(12, 20)
    if SHAPES[label] == 'circle':  # a ball, lit from one side
        return 1.5 * (u - u.mean())
    if SHAPES[label] == 'square':  # checkers
        return np.sign(np.sin(turns * u * np.pi) * np.sin(turns * v * np.pi))
    if SHAPES[label] == 'triangle':  # stripes
        return np.sign(np.sin(1.6 * turns * u * np.pi))
    if SHAPES[label] == 'star':  # speckles
        return 1.4 * rng.uniform(-1, 1, shape).astype(np.float32)
    return np.sin(2 * turns * u * np.pi) * 0.4  # ring: soft waves


def _outline(rng, label, size):
    """Polygons of a shape centred on 0, outer ring first, size in pixels."""
    radius = size / 2
    turn = rng.uniform(0, 2 * np.pi)
    stretch = rng.uniform(0.85, 1.0)
    if SHAPES[label] in ('circle', 'ring'):
        angles, radii = np.linspace(0, 2 * np.pi, 48, endpoint=False), 1.0
    else:
        corners = dict(square=4, triangle=3, star=10)[SHAPES[label]]
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radii = np.where(np.arange(corners) % 2, 0.45, 1.0) \
            if SHAPES[label] == 'star' else 1.0
    outer = np.stack([np.cos(angles) * radii * stretch,
                      np.sin(angles) * radii], 1) * radius
    rotation = np.array([[np.cos(turn), -np.sin(turn)],
                         [np.sin(turn), np.cos(turn)]])
    outer = outer @ rotation
    return [outer, outer * 0.5] if SHAPES[label] == 'ring' else [outer]


def _coverage(outline, centre, shape):
    """Share of each pixel that an outline covers, (H, W) in [0, 1]."""
    big = np.zeros([s * SUPERSAMPLE for s in shape], np.uint8)
    points = [np.round((ring + centre) * SUPERSAMPLE).astype(np.int32)
              for ring in outline]
    cv2.fillPoly(big, points, 255)  # even-odd: the inner ring is a hole
    small = cv2.resize(big, shape[::-1], interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def _background(rng, shape):
    """Sky over ground: the picture in [0, 1] and the map of the two."""
    y, x = _grid(shape)
    horizon = rng.uniform(0.3, 0.65) + rng.uniform(-0.2, 0.2) * (x - 0.5)
    horizon = horizon + 0.03 * _noise(rng, shape, 6)
    ground = (y > horizon).astype(np.uint8)
    sky_low, sky_high, soil = rng.uniform(0.25, 0.85, (3, 3))
    sky_high[2] += 0.1  # skies lean to blue, soils away from it
    soil[2] *= 0.6
    share = y[..., None]
    sky = sky_low * share + sky_high * (1 - share)
    sky = sky + 0.06 * _noise(rng, shape, 4)[..., None]
    rough = sum(_noise(rng, shape, cells) / weight
                for cells, weight in ((5, 1), (12, 1.5), (40, 1.5)))
    soil = soil * (0.8 + 0.3 * share) + 0.09 * rough[..., None]
    return np.where(ground[..., None] > 0, soil, sky), ground


def _paint(rng, image, coverage, label):
    """Draw one object with its shadow over the picture."""
    shape = coverage.shape
    below = image[coverage > 0.5].mean(0)
    colour = rng.uniform(0.1, 0.9, 3)
    while np.abs(colour - below).mean() < 0.2:  # keep it visible
        colour = rng.uniform(0.1, 0.9, 3)
    shift = np.float32([[1, 0, rng.integers(2, 5)], [0, 1, rng.integers(2, 5)]])
    shadow = cv2.GaussianBlur(
        cv2.warpAffine(coverage, shift, shape[::-1]), (0, 0), 2.5)
    image = image * (1 - 0.45 * shadow[..., None])
    body = colour + 0.18 * _texture(rng, label, shape)[..., None]
    alpha = coverage[..., None]
    return image * (1 - alpha) + body * alpha


def _develop(rng, image):
    """What a camera adds: vignette, exposure, blur and sensor noise."""
    shape = image.shape[:2]
    y, x = _grid(shape)
    image = image * (1.08 - 0.5 * ((x - 0.5)**2 + (y - 0.5)**2))[..., None]
    image = cv2.GaussianBlur(image * rng.uniform(0.85, 1.1), (0, 0), 0.6)
    image = image + rng.normal(0, 0.018, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _place(rng, shape, label, span):
    """Coverage of one object of a random size and place in the picture."""
    size = rng.uniform(*span) * min(shape)
    margin = 0.35 * size  # objects may leave the picture by a little
    centre = [rng.uniform(margin, side - margin) for side in shape[::-1]]
    return _coverage(_outline(rng, label, size), centre, shape)


def _flock(rng, shape):
    """Coverage of many small objects of one class, heaped together."""
    label = int(rng.integers(len(SHAPES)))
    size = rng.uniform(0.07, 0.1) * min(shape)
    centre = np.array([rng.uniform(0.25, 0.75) * side for side in shape[::-1]])
    parts = [_coverage(_outline(rng, label, size),
                       centre + rng.normal(0, 1.4 * size, 2), shape)
             for _ in range(int(rng.integers(14, 22)))]
    return label, [part for part in parts if (part > 0.5).any()]


def _visible(coverages):
    """Visible part of every object, the later ones lying on top."""
    taken = np.zeros(coverages[0].shape, bool) if coverages else None
    masks = []
    for coverage in reversed(coverages):
        mask = coverage > 0.5
        masks.append(mask & ~taken)
        taken = taken | mask
    return masks[::-1]


def _drop_hidden(labels, coverages, minimum=48):
    """Take out objects that too little is seen of, the deepest first."""
    while coverages:
        for i, mask in enumerate(_visible(coverages)):
            whole = (coverages[i] > 0.5).sum()
            if mask.sum() < max(minimum, MIN_VISIBLE * whole):
                del labels[i], coverages[i]
                break
        else:
            break
    return labels, coverages


def draw_scene(rng, shape, with_crowd=False):
    """Draw a scene of one to five objects.

    Args:
        rng (np.random.Generator): Source of every choice.
        shape (tuple[int, int]): Height and width in pixels.
        with_crowd (bool): Whether to add a flock behind the objects.
            Defaults to False.

    Returns:
        Scene: The picture with its labels.
    """
    image, ground = _background(rng, shape)
    flock_label, flock = _flock(rng, shape) if with_crowd else (-1, [])
    for part in flock:
        image = _paint(rng, image, part, flock_label)
    spans = list(SIZES.values())
    labels, coverages = [], []
    for _ in range(int(rng.integers(1, 6))):
        labels.append(int(rng.integers(len(SHAPES))))
        span = spans[rng.choice(len(spans), p=(0.35, 0.4, 0.25))]
        coverages.append(_place(rng, shape, labels[-1], span))
    labels, coverages = _drop_hidden(labels, coverages)
    for label, coverage in zip(labels, coverages):
        image = _paint(rng, image, coverage, label)
    crowd = None
    if flock:
        crowd = np.max(flock, 0) > 0.5
        for coverage in coverages:
            crowd &= coverage <= 0.5
    return Scene(_develop(rng, image), ground, _visible(coverages), labels,
                 crowd, flock_label)


def draw_single(rng, shape, label):
    """Draw one large object of a given class, for classification.

    Args:
        rng (np.random.Generator): Source of every choice.
        shape (tuple[int, int]): Height and width in pixels.
        label (int): Index into :data:`SHAPES`.

    Returns:
        np.ndarray: RGB picture, (H, W, 3) uint8.
    """
    image, _ = _background(rng, shape)
    coverage = _place(rng, shape, label, (0.6, 0.95))
    return _develop(rng, _paint(rng, image, coverage, label))
