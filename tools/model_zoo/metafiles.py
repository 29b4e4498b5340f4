"""The model index: a metafile per task, in the format of MIM and MMPretrain.

Made from the configs, from what is measured here (parameters, FLOPs, activations) and
from what the authors report. ``Results`` are ours alone, and there are none; reported
metrics are metadata whose names say so.
"""
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from mmengine.config import Config

from mm_efficient.analysis.models import complexity, from_config
from mm_efficient.weights import FAMILIES as REGISTERED
from mm_efficient.weights import Family

# In the order of the papers
FAMILIES: dict[str, Family] = {
    family.name: family for family in sorted(REGISTERED, key=lambda f: f.paper)}


TASKS = dict(
    cls=('Image Classification', 'ImageNet-1k'),
    det=('Object Detection', 'COCO'),
    seg=('Semantic Segmentation', 'ADE20K'))
INSTANCES = 'Instance Segmentation'
HEADER = """\
# Made by tools/model_zoo/update_model_zoo.py, do not edit.
# Measured for one image of Input Size, {what}.
# FLOPs as OpenMMLab's metafiles count them: multiply-adds of convolutions, linear
# layers and all other matrix products; operations proper are twice as many.
# Reported metrics are the authors', not reproduced here; see Reported By.
"""
COUNTED = dict(
    cls='of the classifier',
    det='of the detector with 1000 regions in\n'
    '# the box head and 100 in the mask head, without sampling and suppression',
    seg="of the segmentor in inference,\n"
    "# without the auxiliary head's FLOPs, but with its parameters")
MEASURED = ('Parameters', 'FLOPs', 'Activations', 'Backbone Parameters',
            'Backbone FLOPs', 'Backbone Activations')


class Entry(NamedTuple):
    """A config of the grid.

    Args:
        config (str): Its path from the root of the repository.
        family (str): Name of the family.
        variant (str): Prefix of the config's name.
        method (str): 'cls', 'retinanet', 'maskrcnn', 'upernet' or 'fpn'. Of further
            classifiers of a variant what their names add: 'softmax' is EcoFormer's
            first training, 'r256' an evaluation at another resolution.
    """
    config: str
    family: str
    variant: str
    method: str

    @property
    def task(self) -> str:
        """'cls', 'det' or 'seg'."""
        return self.config.split('/')[1]


def grid(root: Path) -> list[Entry]:
    """The configs of all families, in the order of the tables.

    Args:
        root (Path): Root of the repository.

    Returns:
        list[Entry]: By task, family, variant and method.

    Raises:
        ValueError: If a config is of no variant of a family.
    """
    families = {variant: name for name, family in FAMILIES.items()
                for variant in family.variants}
    order = {variant: index for index, variant in enumerate(families)}
    entries = []
    for path in sorted((root / 'configs').glob('[!_]*/*.py')):
        parts = path.stem.rsplit('_', 1 if path.parent.name == 'cls' else 2)
        variant, method = parts[0], 'cls' if len(parts) == 2 else parts[1]
        if variant not in families and method == 'cls':
            variant, _, method = variant.rpartition('_')
        if variant not in families:
            raise ValueError(
                f'{path}: no family has a variant {variant!r}; add it to `variants` '
                'in mm_efficient/models/<family>/weights.py')
        entries.append(Entry(path.relative_to(root).as_posix(), families[variant],
                             variant, method))
    tasks = list(TASKS)
    return sorted(entries, key=lambda e: (tasks.index(e.task), order[e.variant]))


def model_name(entry: Entry, cfg: Config) -> str:
    """Name of a model, by the rules of MMPretrain, MMDetection or MMSegmentation.

    Args:
        entry (Entry): The config.
        cfg (Config): What is in it.

    Returns:
        str: Such as ``soft-small_8xb128_in1k``, ``mask-rcnn_soft-small_fpn_1x_coco``
        or ``soft-small_upernet_8xb2-160k_ade20k-512x512``.
    """
    backbone = entry.variant.replace('_', '-')
    schedule = Path(entry.config).stem.rpartition('_')[2]
    if entry.task == 'det':
        method = dict(retinanet='retinanet', maskrcnn='mask-rcnn')[entry.method]
        return f'{method}_{backbone}_fpn_{schedule}_coco'
    batch = cfg.train_dataloader.batch_size
    training = f'{cfg.auto_scale_lr.base_batch_size // batch}xb{batch}'
    if entry.task == 'cls':
        training += '' if schedule == '300e' else f'-{schedule}'
        backbone += '' if entry.method == 'cls' else f'-{entry.method}'
        return f'{backbone}_{training}_in1k'
    return f'{backbone}_{entry.method}_{training}-{schedule}_ade20k-512x512'


def measure(entry: Entry, root: Path) -> dict[str, int]:
    """Count parameters, multiply-adds and activations of a config's model.

    Args:
        entry (Entry): The config.
        root (Path): Root of the repository.

    Returns:
        dict[str, int]: Under the names of ``MEASURED``.
    """
    cost = complexity(from_config(Config.fromfile(root / entry.config), entry.variant))
    backbone = cost.modules['backbone']
    return dict(zip(MEASURED, (
        cost.parameters, cost.macs, cost.activations,
        backbone.parameters, backbone.macs, backbone.activations)))


def metafile(task: str, entries: Sequence[Entry], measured: Mapping[str, dict],
             root: Path) -> str:
    """The metafile of a task.

    Args:
        task (str): 'cls', 'det' or 'seg'.
        entries (Sequence[Entry]): All configs.
        measured (Mapping[str, dict]): By config, from :func:`measure`.
        root (Path): Root of the repository.

    Returns:
        str: YAML.
    """
    entries = [entry for entry in entries if entry.task == task]
    content = {}
    if task == 'cls':  # a collection is declared once
        content['Collections'] = [_collection(name) for name in dict.fromkeys(
            entry.family for entry in entries)]
    content['Models'] = [_model(entry, measured[entry.config], root)
                         for entry in entries]
    return HEADER.format(what=COUNTED[task]) + yaml.safe_dump(
        content, sort_keys=False, width=88, allow_unicode=True)


def _collection(name: str) -> dict:
    family = FAMILIES[name]
    return {
        'Name': name,
        'Metadata': {'Architecture': list(family.classes)},
        'Paper': {'URL': family.paper, 'Title': family.title},
        'Code': {'URL': family.code},
    }


def _model(entry: Entry, measured: Mapping[str, int], root: Path) -> dict:
    cfg = Config.fromfile(root / entry.config)
    task, dataset = TASKS[entry.task]
    tasks = [task, *([INSTANCES] if entry.method == 'maskrcnn' else [])]
    height, width = from_config(cfg, entry.variant).size
    metadata = {'Training Data': dataset, 'Input Size': f'{height}x{width}',
                **{key: measured[key] for key in MEASURED}}
    family = FAMILIES[entry.family]
    reported = family.reported.figures.get(entry.variant, {}).get(entry.method, {})
    for metric, value in reported.items():
        metadata[f'Reported {metric}'] = value
    if reported:
        metadata['Reported By'] = family.reported.sources[entry.method]
    return {
        'Name': model_name(entry, cfg),
        'In Collection': entry.family,
        'Config': entry.config,
        'Metadata': metadata,
        'Results': [dict(Task=name, Dataset=dataset, Metrics={}) for name in tasks],
    }


def model_index() -> str:
    """The root file, which names the metafiles."""
    return ('# Model metafiles by task, read by MIM and mmpretrain.apis.\n'
            + yaml.safe_dump({'Import': [f'configs/{task}/metafile.yml'
                                         for task in TASKS]}))


def read_measured(root: Path) -> dict[str, dict[str, int]]:
    """What the metafiles say was measured.

    Args:
        root (Path): Root of the repository.

    Returns:
        dict[str, dict[str, int]]: By config; empty without metafiles.
    """
    measured = {}
    for task in TASKS:
        path = root / 'configs' / task / 'metafile.yml'
        models = yaml.safe_load(path.read_text())['Models'] if path.exists() else []
        for model in models:
            metadata = model['Metadata']
            if set(MEASURED) <= set(metadata):
                measured[model['Config']] = {key: metadata[key] for key in MEASURED}
    return measured


def parity_errors(log: str) -> dict[str, float]:
    """Errors that the parity tests print, by reference file.

    Args:
        log (str): Output of ``pytest tests/models -s -k matches_the_published``.

    Returns:
        dict[str, float]: The worst of every reference file.
    """
    errors = {}
    for name, value in re.findall(r'(\w+) \[.*?\]: worst relative error (\S+)', log):
        errors[name] = max(errors.get(name, 0.), float(value))
    return errors
