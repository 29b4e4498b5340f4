"""Class names of a checkpoint, and predictions from OpenMMLab's inferencers."""
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope
from mmpretrain.apis import ImageClassificationInferencer
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from ..errors import InputError, explain
from ..weights.checking import check_checkpoint
from .arguments import check_datasets
from .classes import head_classes
from .coco import class_names
from .model_checks import check_model, check_weights
from .traversal import split_datasets

DRAWN_SIDE = 480  # shorter side of classified images that are drawn, in pixels


def dataset_meta(cfg: Config, checkpoint: dict) -> dict:
    """Class names and, if available, the palette of a trained model.

    Args:
        cfg (Config): Config of the model.
        checkpoint (dict): Its checkpoint, or an empty dict.

    Returns:
        dict: ``classes`` and perhaps ``palette``, from the checkpoint, else from the
        test data set of the config. If neither has as many names as the model has
        classes, they are ``'class 0'``, ``'class 1'``, ...

    Raises:
        InputError: If the data set is wrong, or the model has no classes.
    """
    check_datasets(cfg, ['test'])
    dataset = split_datasets(cfg, 'test')[0]
    class_names(cfg, dataset)  # none of another kind
    with DefaultScope.overwrite_default_scope(cfg.default_scope), \
            explain('test_dataloader.dataset of the config cannot be built'):
        tested = DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []}).metainfo
    meta = checkpoint.get('meta') or {}
    trained = {key.lower(): value
               for key, value in (meta.get('dataset_meta') or meta).items()}
    num_classes = head_classes(cfg.model)
    if num_classes is None:
        raise InputError('no head of the model has num_classes.')
    for found in (trained, tested):
        if len(found.get('classes') or ()) == num_classes:
            palette = found.get('palette') or tested.get('palette') or ()
            return dict(classes=tuple(found['classes']),
                        **({'palette': palette} if len(palette) >= num_classes else {}))
    return dict(classes=tuple(f'class {i}' for i in range(num_classes)))


class FileInferencer(ImageClassificationInferencer):
    """Classifies image files as testing does: the whole test pipeline reads them.

    MMPretrain's own inferencer decodes them with OpenCV, whatever the config says.
    """

    def _init_pipeline(self, cfg: Config) -> Compose:
        pipeline = split_datasets(cfg, 'test')[0]['pipeline']
        return Compose([TRANSFORMS.build(transform) for transform in pipeline])

    def preprocess(self, inputs: list[str], batch_size: int = 1) -> Iterator[Any]:
        samples = (self.pipeline(dict(img_path=path)) for path in inputs)
        yield from map(default_collate, self._get_chunk_data(samples, batch_size))


def build_inferencer(cfg: Config, checkpoint: str, device: str | None = None) -> Any:
    """Build the OpenMMLab inferencer for the task of a config.

    Args:
        cfg (Config): Config of one of the three tasks.
        checkpoint (str): Its weights.
        device (str, optional): Device to run on. Defaults to None, the best available.

    Returns:
        ImageClassificationInferencer | DetInferencer | MMSegInferencer: With the names
        of :func:`dataset_meta` in ``model.dataset_meta``, and no progress bar.

    Raises:
        InputError: If the checkpoint is missing or does not fit the config.
        ExecutionError: If the model cannot be loaded, for example on this device.
    """
    check_model(cfg, pretrained=False)
    weights = check_checkpoint(checkpoint)
    if weights is not None:
        check_weights(cfg, weights, checkpoint)
    meta = dataset_meta(cfg, weights or {})
    device = device or get_device()
    with warnings.catch_warnings(), explain(f'the model cannot be loaded on {device}'):
        warnings.simplefilter('ignore', UserWarning)  # class names; meta sets them
        return _build(copy.deepcopy(cfg), checkpoint, device, meta)


def _build(cfg: Config, checkpoint: str, device: str, meta: dict) -> Any:
    size = len(meta['classes']), 3
    palette = np.random.RandomState(0).randint(256, size=size).tolist()
    meta = {'palette': palette, **meta}
    if cfg.default_scope == 'mmpretrain':
        from mmpretrain.utils import progress
        progress.disable_progress_bar = True
        inferencer = FileInferencer(cfg, checkpoint, device, classes=meta['classes'])
    elif cfg.default_scope == 'mmdet':
        from mmdet.apis import DetInferencer
        cfg.visualizer = dict(type='DetLocalVisualizer')
        inferencer = DetInferencer(cfg, checkpoint, device, show_progress=False)
        inferencer.visualizer.dataset_meta = meta
    else:
        from mmseg.apis import MMSegInferencer
        cfg.visualizer = dict(type='SegLocalVisualizer')
        inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        inferencer.show_progress = False
    inferencer.model.dataset_meta = meta
    return inferencer


def predict(inferencer: Any, task: str, image: Path, out_dir: Path,
            score_thr: float = 0.3) -> dict:
    """Predict one image and write what the inferencer writes.

    Args:
        inferencer: From :func:`build_inferencer`.
        task (str): ``default_scope`` of its config.
        image (Path): The image file.
        out_dir (Path): Folder to write to: the drawn prediction to
            ``vis/<image>`` (of classifiers ``vis/<image>.png``), the label map of a
            segmentor to ``pred/<image>.png``.
        score_thr (float): Lowest score of the detections to draw. Defaults to 0.3.

    Returns:
        dict: The prediction in the inferencer's own format, ready for JSON. For
        segmentors ``sem_seg``, the label map relative to ``out_dir``, and ``shares``,
        the fraction of pixels of every predicted class, largest first.

    Raises:
        ExecutionError: If the image cannot be read, or the model cannot run on it.
    """
    source, png = str(image), f'{image.name}.png'
    vis, pred = out_dir / 'vis', out_dir / 'pred'
    vis.mkdir(parents=True, exist_ok=True)
    with explain(f'{image} cannot be predicted'):
        if task == 'mmdet':
            found = inferencer(source, out_dir=str(out_dir), pred_score_thr=score_thr)
            return found['predictions'][0]
        # The other two write files whose names may not be unique, or are numbers
        if task == 'mmpretrain':
            short, long = sorted(Image.open(image).size)
            # Enlarged for the text, but not to gigabytes if it is a strip
            side = min(DRAWN_SIDE, 40 * DRAWN_SIDE * short // long or 1)
            found, = inferencer(source, show_dir=str(vis), resize=side)
            (vis / image.stem).with_suffix('.png').replace(vis / png)
            return {**found, 'pred_scores': found['pred_scores'].tolist()}
        labels = inferencer(source, out_dir=str(out_dir), opacity=0.5)['predictions']
        (pred / f'{inferencer.num_pred_imgs - 1:08}_pred.png').replace(pred / png)
    classes = inferencer.model.dataset_meta['classes']
    indices, counts = np.unique(labels, return_counts=True)
    return dict(sem_seg=f'pred/{png}', shares={
        classes[indices[i]]: counts[i] / labels.size for i in counts.argsort()[::-1]})
