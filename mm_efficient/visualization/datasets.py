"""A data set as its pipeline delivers it: what a model is trained and tested on."""
import copy
from collections.abc import Iterator, Sequence

import mmcv
import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer

from ..errors import InputError
from ..runs.classes import use_class_folders
from ..runs.data_checks import check_data, leaf_datasets
from .figures import grid_figure

LEGEND = 12  # classes named in a picture of segments
MIN_SIDE = 256  # pixels; smaller images are enlarged so that labels can be read


def build_dataset(cfg: Config, part: str):
    """The data set of a config.

    Args:
        cfg (Config): Config of one of the three tasks.
        part (str): 'train', 'val' or 'test'.

    Returns:
        BaseDataset: With its pipeline; ground truth is loaded for testing, too.

    Raises:
        InputError: If the config has none, or files are missing.
    """
    loader = cfg.get(f'{part}_dataloader')
    if loader is None:
        raise InputError(f'the config has no {part}_dataloader.')
    check_data(cfg, part)
    if cfg.default_scope == 'mmpretrain':
        use_class_folders(cfg, [part])
    for dataset in leaf_datasets(loader.dataset):
        if part != 'train' and cfg.default_scope == 'mmdet':
            dataset.test_mode = False  # in which mmdet hands no boxes on
            dataset.filter_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(loader.dataset)


def choose_indices(size: int, number: int, index: int | None = None) -> list[int]:
    """Which samples to show.

    Args:
        size (int): Number of samples in the data set.
        number (int): How many are wanted.
        index (int, optional): One that is wanted ``number`` times, drawn anew each
            time. Defaults to None, samples spread over the whole set.

    Returns:
        list[int]: Indices.

    Raises:
        InputError: If there is no such sample.
    """
    if index is not None:
        if not 0 <= index < size:
            raise InputError(f'the data set has samples 0 to {size - 1}, not {index}.')
        return [index] * number
    return np.linspace(0, size - 1, min(number, size)).round().astype(int).tolist()


def deliver(dataset, indices: Sequence[int]
            ) -> Iterator[tuple[np.ndarray, BaseDataElement]]:
    """Samples as the pipeline delivers them.

    Args:
        dataset (BaseDataset): From :func:`build_dataset`.
        indices (Sequence[int]): Which.

    Yields:
        tuple[ndarray, BaseDataElement]: RGB image, (H, W, 3), uint8, and annotations.
        The image is at its original size if the annotations are, as for testing.

    Raises:
        InputError: If a pipeline hands on something that is not an image.
    """
    names = [type(transform).__name__ for transform in
             getattr(getattr(dataset, 'pipeline', None), 'transforms', ())]
    annotated = [i for i, name in enumerate(names) if name.startswith('LoadAnnotation')]
    resized = [i for i, name in enumerate(names) if 'Resize' in name]
    unsized = bool(annotated and resized and resized[0] < annotated[0])
    for index in indices:
        sample = dataset[index]
        image = sample['inputs']
        if getattr(image, 'ndim', 0) != 3 or image.shape[0] != 3:
            raise InputError(
                f'sample {index} is {type(image).__name__}, expected a tensor of three '
                'channels: pipelines with several views cannot be shown.')
        image = image.numpy().transpose(1, 2, 0)[..., ::-1]
        image = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
        truth = sample['data_samples']
        if unsized:
            image = mmcv.imresize(image, truth.metainfo['ori_shape'][1::-1])
        yield image, truth


def build_visualizer(cfg: Config, metainfo: dict) -> Visualizer:
    """OpenMMLab's visualizer of a task, without storage.

    Args:
        cfg (Config): Config with ``default_scope``.
        metainfo (dict): Of the data set: ``classes``, and ``palette`` if there is one.

    Returns:
        Visualizer: Of the task.
    """
    scope = cfg.default_scope
    kind = dict(mmpretrain='UniversalVisualizer', mmdet='DetLocalVisualizer',
                mmseg='SegLocalVisualizer')[scope]
    with DefaultScope.overwrite_default_scope(scope):
        visualizer = VISUALIZERS.build(dict(type=kind, name=f'{scope}-figures'))
    visualizer.dataset_meta = dict(metainfo)
    if scope == 'mmseg':
        visualizer.alpha = 0.5
        if not metainfo.get('palette'):
            size = len(metainfo['classes']), 3
            visualizer.dataset_meta['palette'] = np.random.RandomState(0).randint(
                256, size=size).tolist()
    return visualizer


def draw_truth(visualizer: Visualizer, image: np.ndarray,
               sample: BaseDataElement) -> np.ndarray:
    """Draw the annotations of a sample into its image.

    Args:
        visualizer (Visualizer): From :func:`build_visualizer`.
        image (ndarray): RGB, (H, W, 3), uint8.
        sample (BaseDataElement): Annotations.

    Returns:
        ndarray: RGB, at least 256 pixels wide and high for classification.
    """
    if hasattr(visualizer, 'visualize_cls'):
        scale = max(1., MIN_SIDE / min(image.shape[:2]))
        return visualizer.visualize_cls(image, sample, draw_pred=False,
                                        rescale_factor=scale)
    if 'gt_sem_seg' in sample:
        return draw_segments(visualizer, image, sample.gt_sem_seg)
    visualizer.add_datasample('sample', image, _plain(sample), draw_pred=False)
    return visualizer.get_image()


def draw_segments(visualizer: Visualizer, image: np.ndarray,
                  segments: PixelData) -> np.ndarray:
    """Draw a label map into its image, with a legend.

    Args:
        visualizer (Visualizer): Of segmentation; it would write the names into the
            segments, many of them beyond the edge of the image.
        image (ndarray): RGB, (H, W, 3), uint8.
        segments (PixelData): Class of every pixel, (1, H, W); no class is dark.

    Returns:
        ndarray: RGB, (H, W, 3).
    """
    from mmseg.structures import SegDataSample
    visualizer.add_datasample('sample', image, SegDataSample(gt_sem_seg=segments),
                              draw_pred=False, with_labels=False)
    names, palette = (visualizer.dataset_meta[key] for key in ('classes', 'palette'))
    counts = np.bincount(segments.data.cpu().numpy().ravel(), minlength=len(names))
    largest = [i for i in counts[:len(names)].argsort()[::-1] if counts[i]][:LEGEND]
    size = max(6, min(image.shape[:2]) / 40)
    for line, label in enumerate(largest):
        color = np.array(palette[label])
        visualizer.draw_texts(
            names[label], np.array([size, size * (1 + 2.2 * line)]), font_sizes=size,
            colors='black' if color.mean() > 127 else 'white',
            bboxes=dict(facecolor=color / 255, edgecolor='white', linewidth=0.5,
                        boxstyle='round'))
    return visualizer.get_image()


def _plain(sample: BaseDataElement) -> BaseDataElement:
    """Boxes as tensors, which is what mmdet's visualizer can draw."""
    instances = sample.get('gt_instances')
    if instances is None or not hasattr(instances.get('bboxes'), 'tensor'):
        return sample
    sample = copy.copy(sample)
    instances = instances.clone()
    boxes = instances.pop('bboxes')
    instances.bboxes = boxes.tensor
    sample.gt_instances = instances
    return sample


def draw_dataset(pictures: Sequence[np.ndarray], titles: Sequence[str],
                 columns: int = 4) -> Figure:
    """Figure of pictures in a grid.

    Args:
        pictures (Sequence[ndarray]): RGB images.
        titles (Sequence[str]): One for each.
        columns (int): Pictures in a row. Defaults to 4.

    Returns:
        Figure: Not saved yet.
    """
    aspects = [picture.shape[1] / picture.shape[0] for picture in pictures]
    columns = min(columns, len(pictures))
    figure, panels = grid_figure(-(-len(pictures) // columns), columns,
                                 float(np.median(aspects)))
    for panel, picture, title in zip(panels.flat, pictures, titles):
        panel.imshow(picture)
        panel.set_title(title, fontsize=9)
    return figure
