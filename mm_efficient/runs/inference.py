"""Predictions for photographs, with pictures, on OpenMMLab's inferencers."""
import copy
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement
from PIL import Image

from ..errors import InputError
from ..visualization.datasets import MIN_SIDE, build_visualizer, draw_segments
from ..weights.checking import check_checkpoint
from .data_checks import leaf_datasets
from .model_checks import check_model, check_weights

TOP = 5  # classes listed for an image


def build_predictor(cfg: Config, checkpoint: str, device: str | None = None,
                    score_thr: float = 0.3) -> 'Predictor':
    """What predicts and draws, for the task of a config.

    Args:
        cfg (Config): Config of one of the three tasks.
        checkpoint (str): Its weights.
        device (str, optional): Where to run. Defaults to None, the best there is.
        score_thr (float): Smallest score of detections that count. Defaults to 0.3.

    Returns:
        Predictor: Of the task.

    Raises:
        InputError: If the weights are missing or do not fit the config.
    """
    check_model(cfg, pretrained=False)
    weights = check_checkpoint(checkpoint)
    if weights is not None:
        check_weights(cfg, weights, checkpoint)
    kind = dict(mmpretrain=ClassPredictor, mmdet=ObjectPredictor,
                mmseg=SegmentPredictor)[cfg.default_scope]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # about class names, see below
            return kind(copy.deepcopy(cfg), checkpoint, device or get_device(),
                        dataset_meta(cfg, weights or {}), score_thr)
    except (OSError, RuntimeError) as error:  # of a download, of a device
        raise InputError(f'the model cannot be loaded: {error}') from None


def dataset_meta(cfg: Config, checkpoint: dict) -> dict:
    """Class names, and colours if any.

    Those the model was trained with, which its checkpoint holds; otherwise those of
    the data set that the config tests on.

    Args:
        cfg (Config): The config.
        checkpoint (dict): The checkpoint, or an empty dict.

    Returns:
        dict: ``classes`` and perhaps ``palette``; the classes are numbered if none of
        these names fit the number of classes of the model.
    """
    dataset = leaf_datasets(cfg.test_dataloader.dataset)[0]
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        tested = DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []}).metainfo
    meta = checkpoint.get('meta') or {}
    trained = {key.lower(): value
               for key, value in (meta.get('dataset_meta') or meta).items()}
    number = num_classes(cfg)
    for found in (trained, tested):
        if len(found.get('classes') or ()) == number:
            palette = found.get('palette') or tested.get('palette') or ()
            return dict(classes=tuple(found['classes']),
                        **({'palette': palette} if len(palette) >= number else {}))
    return dict(classes=tuple(f'class {i}' for i in range(number)))


def num_classes(cfg: Config) -> int:
    """Number of classes that the model of a config tells apart."""
    model = cfg.model
    head = model.get('head') or model.get('decode_head') or model.get('bbox_head') or (
        model.get('roi_head') or {}).get('bbox_head')
    head = head[-1] if isinstance(head, (list, tuple)) else head
    return head['num_classes']


class Predictor:
    """Predicts for one photograph after the other.

    Args:
        cfg (Config): The config, may be changed.
        checkpoint (str): Weights.
        device (str): Where to run.
        meta (dict): Class names and perhaps colours.
        score_thr (float): Smallest score of detections that count.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str, meta: dict,
                 score_thr: float):
        self.classes = meta['classes']
        self.score_thr = score_thr
        self.visualizer = build_visualizer(cfg, meta)
        cfg.visualizer = dict(type=type(self.visualizer).__name__)
        self.inferencer = self._build(cfg, checkpoint, device)

    def _build(self, cfg: Config, checkpoint: str, device: str) -> None:
        raise NotImplementedError

    def predict(self, path: str | Path) -> BaseDataElement:
        """Predict for an image file.

        Args:
            path (str | Path): The file.

        Returns:
            BaseDataElement: The prediction, on the CPU.

        Raises:
            InputError: If it cannot be read, or the model refuses to run.
        """
        try:
            data = next(iter(self.inferencer.preprocess([str(path)])))
            sample, = self.inferencer.forward(self._batch(data))
        except (ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise InputError(f'{path}: {error}') from error
        return sample.cpu()

    def _batch(self, data: Any) -> Any:
        """What the model takes, of what the inferencer's preprocessing gives."""
        return data

    def describe(self, sample: BaseDataElement) -> dict:
        """A prediction in numbers and names that fit into JSON."""
        raise NotImplementedError

    def sum_up(self, description: dict) -> str:
        """The same in a few words."""
        raise NotImplementedError

    def draw(self, path: str | Path, sample: BaseDataElement,
             out_file: str | Path) -> None:
        """Draw a prediction into its image.

        Args:
            path (str | Path): The image.
            sample (BaseDataElement): From :meth:`predict`.
            out_file (str | Path): Where to write it, completely or not at all.
        """
        image = mmcv.imread(str(path), channel_order='rgb')
        picture = self._draw(image, sample)
        out_file = Path(out_file)
        draft = out_file.with_name(f'.{out_file.stem}.tmp{out_file.suffix}')
        try:
            mmcv.imwrite(np.ascontiguousarray(picture[..., ::-1]), str(draft))
            os.replace(draft, out_file)
        finally:
            draft.unlink(missing_ok=True)

    def _draw(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        raise NotImplementedError


class ClassPredictor(Predictor):
    """Of classifiers."""

    def _build(self, cfg: Config, checkpoint: str, device: str):
        from mmpretrain.apis import ImageClassificationInferencer
        return ImageClassificationInferencer(cfg, checkpoint, device, self.classes)

    def describe(self, sample: BaseDataElement) -> dict:
        scores, labels = sample.pred_score.topk(min(TOP, len(self.classes)))
        return dict(classes=[dict(name=self.classes[label], score=round(score, 4))
                             for score, label in zip(scores.tolist(), labels.tolist())])

    def sum_up(self, description: dict) -> str:
        return ', '.join(f'{c["name"]} {c["score"]:.2f}'
                         for c in description['classes'][:3])

    def _draw(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        return self.visualizer.visualize_cls(
            image, sample, classes=self.classes, draw_gt=False,
            rescale_factor=max(1., MIN_SIDE / min(image.shape[:2])))


class ObjectPredictor(Predictor):
    """Of detectors, with masks if they have any."""

    def _build(self, cfg: Config, checkpoint: str, device: str):
        from mmdet.apis import DetInferencer
        return DetInferencer(cfg, checkpoint, device, show_progress=False)

    def _batch(self, data: Any) -> Any:
        _, batch = data
        return batch

    def describe(self, sample: BaseDataElement) -> dict:
        found = sample.pred_instances
        found = found[found.scores >= self.score_thr]
        objects = [
            dict(name=self.classes[label], score=round(score, 4),
                 box=[round(side, 1) for side in box])
            for label, score, box in zip(found.labels.tolist(), found.scores.tolist(),
                                         found.bboxes.tolist())]
        if 'masks' in found:
            from mmdet.structures.mask import encode_mask_results
            for each, mask in zip(objects, encode_mask_results(found.masks.numpy())):
                each['mask'] = dict(size=mask['size'], counts=mask['counts'].decode())
        return dict(objects=objects)

    def sum_up(self, description: dict) -> str:
        names = Counter(each['name'] for each in description['objects'])
        return ', '.join(f'{number} {name}' for name, number in names.most_common()) \
            or f'nothing with a score of {self.score_thr} or more'

    def _draw(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        self.visualizer.add_datasample('prediction', image, sample, draw_gt=False,
                                       pred_score_thr=self.score_thr)
        return self.visualizer.get_image()


class SegmentPredictor(Predictor):
    """Of segmentors."""

    def _build(self, cfg: Config, checkpoint: str, device: str):
        from mmseg.apis import MMSegInferencer
        return MMSegInferencer(cfg, checkpoint, device=device)

    def describe(self, sample: BaseDataElement) -> dict:
        labels = sample.pred_sem_seg.data
        shares = torch.bincount(labels.flatten(), minlength=len(self.classes)) \
            / labels.numel()
        return dict(shares={self.classes[i]: round(shares[i].item(), 4)
                            for i in shares.argsort(descending=True) if shares[i]})

    def sum_up(self, description: dict) -> str:
        shares = list(description['shares'].items())
        return ', '.join(f'{name} {share:.0%}' for name, share in shares[:TOP])

    def save_labels(self, sample: BaseDataElement, out_file: str | Path) -> None:
        """Write the class of every pixel as an image of numbers.

        Args:
            sample (BaseDataElement): From :meth:`predict`.
            out_file (str | Path): PNG, at the size of the photograph.
        """
        Image.fromarray(sample.pred_sem_seg.data[0].numpy().astype(np.uint16)).save(
            out_file)

    def _draw(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        return draw_segments(self.visualizer, image, sample.pred_sem_seg)
