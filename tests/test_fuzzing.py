"""Random input works or is refused in words; MM_EFFICIENT_FUZZ=N tries N of each kind.

By default a few small ones, always the same.
"""
import argparse
import contextlib
import copy
import io
import json
import os
import pickle
import re

import numpy as np
import pytest
import torch

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402
from PIL import Image  # noqa: E402

from mm_efficient.errors import InputError  # noqa: E402
from mm_efficient.models.base import PyramidBackbone, fit_where_needed  # noqa: E402
from mm_efficient.runs.arguments import check_arguments  # noqa: E402
from mm_efficient.runs.coco_entries import CocoReader  # noqa: E402
from mm_efficient.runs.configs import load_config  # noqa: E402
from mm_efficient.runs.options import OptionsAction  # noqa: E402
from mm_efficient.runs.overrides import check_length  # noqa: E402
from mm_efficient.weights.family import CheckpointError  # noqa: E402
from mm_efficient.weights.unpickling import load_plain  # noqa: E402

LONG = int(os.environ.get('MM_EFFICIENT_FUZZ', 0))
LARGEST = 1400 if LONG else 150  # pixels


def fuzz(few, *strategies, **named):
    """Decorator: try a few examples, or as many as were asked for."""
    chosen = settings(
        max_examples=LONG or few, deadline=None, derandomize=not LONG, database=None,
        phases=[Phase.generate, *([Phase.shrink] if LONG else [])],
        suppress_health_check=list(HealthCheck))
    return lambda test: chosen(given(*strategies, **named)(test))


# ------------------------------------------------------------------- backbones

BACKBONES = sorted((cls for cls in MODELS.module_dict.values() if isinstance(cls, type)
                    and issubclass(cls, PyramidBackbone)), key=lambda cls: cls.__name__)
SIDES = st.integers(32, LARGEST)
FITTED = {}  # model -> its state once fitted


def shallow(cls):
    """The first arch, with one block in each stage."""
    return {**next(iter(cls.ARCHS.values())), 'depths': [1, 1, 1, 1]}


def fit(model):
    """Fit hash functions, to the same images only once."""
    key = repr((type(model), [*model.state_dict()]))
    if key not in FITTED:
        fit_where_needed(model, torch.randn(1, 3, 80, 80))
        FITTED[key] = copy.deepcopy(model.state_dict())
    model.load_state_dict(FITTED[key])


@pytest.mark.parametrize('cls', BACKBONES)
@fuzz(2, data=st.data())
def test_images_of_any_size(cls, data):
    """Shapes, finite values, and no dependence on other images or the layout."""
    batch = data.draw(st.integers(1, 3), 'batch')
    height, width = data.draw(SIDES, 'height'), data.draw(SIDES, 'width')
    indices = data.draw(st.lists(st.integers(-4, 3), min_size=1, max_size=4,
                                 unique_by=lambda i: i % 4), 'out_indices')
    frozen = data.draw(st.integers(-1, 4), 'frozen_stages')
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    layout = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    torch.manual_seed(0)
    indices = sorted(indices, key=lambda i: i % 4)
    try:
        model = cls(shallow(cls), out_indices=tuple(indices), frozen_stages=frozen)
    except ValueError as error:
        assert frozen > 3 or 'frozen' in str(error) or 'out_indices' in str(error)
        return
    model._init_from_scratch()
    fit(model)
    model.eval().to(dtype, memory_format=layout)
    x = torch.randn(batch, 3, height, width).to(dtype, memory_format=layout)
    with torch.no_grad():
        outs, alone = model(x), model(x[:1].contiguous())
    for index, out, single in zip(indices, outs, alone):
        stride = 4 << index % 4
        assert out.shape == (batch, model.feature_channels[index % 4],
                             -(-height // stride), -(-width // stride))
        assert out.dtype == dtype and out.isfinite().all()
        error = (out[:1] - single).abs().max() / single.abs().max().clamp(min=1e-9)
        assert error < (0.1 if dtype == torch.bfloat16 else 1e-3)
    for parameter in model.stem.parameters() if hasattr(model, 'stem') else ():
        assert parameter.requires_grad == (frozen < 0)


# ----------------------------------------------------------------- checkpoints

CONTENT = dict(meta=dict(epoch=1), state_dict=dict(a=torch.arange(9.), b=torch.ones(2)))


def content_of(legacy):
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


FILES = {True: content_of(True), False: content_of(False)}
EDITS = st.lists(st.tuples(st.sampled_from(['flip', 'cut', 'insert', 'swap']),
                           st.floats(0, 1), st.binary(min_size=1, max_size=9)),
                 min_size=1, max_size=4)


def edited(data, edits):
    data = bytearray(data)
    for kind, place, extra in edits:
        at = int(place * max(len(data) - 1, 0))
        if kind == 'cut':
            del data[at:]
        elif kind == 'insert':
            data[at:at] = extra
        elif kind == 'swap':
            data[at:at + len(extra)] = extra
        elif data:
            data[at] ^= 1 << extra[0] % 8
    return bytes(data)


@fuzz(100, st.booleans(), EDITS)
def test_damaged_checkpoints(tmp_path_factory, legacy, edits):
    """Refused in one line, or what was written; old files have no checksums."""
    path = tmp_path_factory.getbasetemp() / 'x.pth'
    path.write_bytes(edited(FILES[legacy], edits))
    try:
        found = load_plain(path)
    except CheckpointError as error:
        assert str(path) in str(error) and '\n' not in str(error)
        return
    if not legacy:
        torch.testing.assert_close(found, CONTENT, rtol=0, atol=0)


NAMES = st.one_of(
    st.sampled_from([('os', 'system'), ('posix', 'system'), ('builtins', 'exec'),
                     ('builtins', 'eval'), ('builtins', 'getattr'),
                     ('builtins', 'open'),
                     ('subprocess', 'Popen'), ('shutil', 'rmtree'), ('torch', 'load'),
                     ('torch.hub', 'load'), ('numpy', 'load'), ('pathlib', 'Path'),
                     ('codecs', 'decode'), ('importlib', 'import_module')]),
    st.tuples(st.sampled_from(['os', 'torch', 'numpy', 'mmengine', 'builtins', 'sys']),
              st.text(st.characters(min_codepoint=46, max_codepoint=122), min_size=1,
                      max_size=8)))


@fuzz(100, NAMES, st.sampled_from(['touch harm', 'open("harm", "w")', 'harm']),
      st.sampled_from([b'R', b'\x81', b'b']), st.booleans())
def test_pickles_that_call(tmp_path_factory, name, argument, step, in_state):
    """Whatever a file names and calls: it is refused, and nothing has happened."""
    folder = tmp_path_factory.getbasetemp()
    call = b'c%s\n%s\n' % tuple(part.encode() for part in name)
    call += b'(' + b'V%s\n' % argument.encode() + b't' + step
    program = b'\x80\x02' + (b'}X\x01\x00\x00\x00x%ss.' % call if in_state
                             else call + b'.')
    (folder / 'call.pth').write_bytes(program)
    with contextlib.chdir(folder) if hasattr(contextlib, 'chdir') else \
            contextlib.nullcontext(), pytest.raises(CheckpointError) as error:
        load_plain(folder / 'call.pth')
    assert '\n' not in str(error.value) and not (folder / 'harm').exists()


PLAIN = (dict, list, tuple, set, str, bytes, bool, int, float, type(None))


@fuzz(100, st.binary(max_size=300), st.sampled_from([b'', b'PK\x03\x04', b'\x80\x02',
                                                      pickle.dumps(dict(a=1))[:-1]]))
def test_any_bytes(tmp_path_factory, data, start):
    path = tmp_path_factory.getbasetemp() / 'y.pth'
    path.write_bytes(start + data)
    try:
        assert isinstance(load_plain(path), PLAIN)
    except CheckpointError as error:
        assert str(path) in str(error) and '\n' not in str(error)


# ----------------------------------------------------------------- annotations

JUNK = st.one_of(st.none(), st.booleans(), st.integers(-9, 99), st.text(max_size=3),
                 st.floats(-9, 99), st.lists(st.integers(0, 64), max_size=7),
                 st.dictionaries(st.sampled_from(['size', 'counts', 'a']),
                                 st.lists(st.integers(0, 64), max_size=3), max_size=2))


def entry(**fields):
    """Entries in which any field may be missing or anything."""
    usual = st.fixed_dictionaries({}, optional={
        key: st.one_of(value, value, value, JUNK) for key, value in fields.items()})
    return st.one_of(st.fixed_dictionaries(fields), usual)


NUMBERS = st.integers(0, 60)
IMAGE = entry(id=st.integers(1, 3), file_name=st.sampled_from(['a.jpg', 'b.jpg']),
              height=st.just(48), width=st.just(64))
POLYGON = st.lists(st.lists(NUMBERS, min_size=4, max_size=8), max_size=2)
RUN_LENGTHS = st.fixed_dictionaries(dict(
    size=st.sampled_from([[48, 64], [64, 48]]),
    counts=st.sampled_from([[0, 9, 3063], [3072]])))
ANNOTATION = entry(
    id=st.integers(1, 9), image_id=st.integers(1, 3), category_id=st.integers(1, 2),
    bbox=st.lists(NUMBERS, min_size=4, max_size=4), area=st.integers(-1, 99),
    iscrowd=st.integers(0, 1), segmentation=st.one_of(POLYGON, RUN_LENGTHS))


def mmdetection_fails(path, masks):
    """What MMDetection says about a file, None if it reads everything."""
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    load = LoadAnnotations(with_bbox=True, with_mask=masks)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = CocoDataset(ann_file=str(path), serialize_data=False, pipeline=[],
                                  data_prefix=dict(img=''),
                                  metainfo=dict(classes=('cat', )))
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            load({**info, 'ori_shape': (48, 64), 'img_shape': (48, 64),
                  'img': np.zeros((48, 64, 3), np.uint8)})
    except Exception as error:
        return error
    return None


@fuzz(120, st.lists(IMAGE, min_size=1, max_size=3), st.lists(ANNOTATION, max_size=3),
      st.booleans())
def test_entries_are_refused_as_by_mmdetection(tmp_path_factory, images, annotations,
                                               masks):
    """What MMDetection fails on is named; what it reads is not refused."""
    pytest.importorskip('mmdet')
    content = dict(images=images, annotations=annotations,
                   categories=[dict(id=1, name='cat')])
    folder = tmp_path_factory.getbasetemp()
    path = folder / 'entries.json'
    path.write_text(json.dumps(content))
    for name in ('a.jpg', 'b.jpg'):
        if not (folder / name).exists():
            Image.new('RGB', (64, 48)).save(folder / name)
    reader = CocoReader(str(folder), masks=masks, classes=['cat'])
    faults = [fault for _, fault in reader.faults(json.loads(path.read_text()))]
    error = mmdetection_fails(path, masks)
    if error is not None:
        assert faults, repr(error)
    # MMDetection mixes these up, reads at random and transposes
    stricter = re.compile('has the id of|run lengths that are damaged|has a mask of')
    if error is None:
        assert all(stricter.search(fault) for fault in faults)


# --------------------------------------------------------------------- options


@fuzz(150, st.lists(st.one_of(
    st.text(max_size=12), st.text(st.sampled_from('ab.=[](),1"\' '), max_size=12)),
    min_size=1, max_size=2))
def test_option_strings(texts):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction)
    namespace = argparse.Namespace(cfg_options=None)
    action = parser._option_string_actions['--cfg-options']
    try:
        action(parser, namespace, texts, '--cfg-options')
    except SystemExit as stop:
        assert stop.code.startswith('error: --cfg-options')
    else:
        assert isinstance(namespace.cfg_options, dict)


@pytest.fixture(scope='module')
def config():
    """A config, and the dotted keys of all its settings."""
    cfg = load_config('soft_tiny_retinanet_1x.py')

    def keys(node, name=''):
        items = node.items() if isinstance(node, dict) else enumerate(node) if \
            isinstance(node, (list, tuple)) else ()
        for key, value in items:
            full = f'{name}.{key}' if name else str(key)
            yield full
            yield from keys(value, full)

    return cfg, [key for key in keys(cfg.to_dict()) if not key.startswith('model.')]


@fuzz(60, data=st.data())
def test_any_setting(config, data):
    """Merging and checking it raises nothing but errors in words."""
    cfg, keys = config
    key = data.draw(st.sampled_from(keys)) + data.draw(st.sampled_from(['', '', '.x']))
    value = data.draw(JUNK)
    try:
        changed: Config = load_config(cfg, {key: value})
        if changed.get('train_dataloader') and changed.get('optim_wrapper'):
            check_length(changed)
            check_arguments(changed, ['train', 'val'])
    except InputError as error:
        assert str(error)
