import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mm_efficient.datasets.mini import generate_dataset
from mm_efficient.errors import InputError
from mm_efficient.files import config_files, configs_folder
from mm_efficient.runs.configs import load_config

ROOT = Path(__file__).parents[2]

DET = 'det/soft_tiny_maskrcnn_1x.py'
SEG = 'seg/soft_tiny_fpn_80k.py'
CLS = 'cls/soft_tiny_300e.py'


@pytest.mark.parametrize('text, message', [
    (None, 'does not exist'),
    ('a = (', 'cannot be read'),
    ('_base_ = "nowhere.py"', 'cannot be read'),
    ('model = dict()', 'sets no default_scope; expected one of'),
    ('model = dict()\ndefault_scope = "mmnone"', 'needs mmnone, which is not'),
    ('default_scope = "mmpretrain"', 'sets no model'),
    ('model = dict()\ndefault_scope = "mmpretrain"', 'sets no train_dataloader'),
])
def test_wrong_config(tiny, train, fails, text, message):
    if text is not None:
        (tiny / 'config.py').write_text(text)
    assert message in fails(train, 'config.py', '--work-dir', 'work')
    assert not (tiny / 'work').exists()


@pytest.mark.parametrize('option, message', [
    ('model.train_cfg.augments=[]', 'The run has failed: ValueError: .*, line '),
    ('model.train_cfg.augments.0.alpha=0', r'AssertionError: assert .*\(.*mixup.py, l'),
    ('train_dataloader.dataset.pipeline=[]', "gives no inputs .*'PackInputs'"),
    ('val_dataloader.dataset.pipeline.2.scale=0', r'must be > 0 \(in ResizeEdge of ')])
def test_what_fails_before_the_first_iteration_ends(tiny, train, fails, config, option,
                                                    message):
    line = fails(train, config(CLS), '--mini', '--work-dir', 'work', '--cfg-options',
                 'log_level=ERROR', option)
    assert re.search(message, line) and '\n' not in line
    assert not (tiny / 'work').exists()


def test_config_by_its_name_alone(tiny):
    name = Path(CLS).name
    cfg = load_config(name)
    assert cfg.filename == str(configs_folder() / CLS)
    names = [path.name for path in config_files()]
    assert len(names) == len(set(names))
    (tiny / name).write_text((configs_folder() / CLS).read_text().replace(
        "'../", f"'{configs_folder().as_posix()}/"))
    assert load_config(name).filename == name  # what is there wins
    for wrong in ('cls/' + name, 'metafile.yml', 'default_runtime.py'):
        with pytest.raises(InputError, match='does not exist'):
            load_config(wrong)


@pytest.mark.parametrize('name, folder, source', [
    (CLS, 'data/imagenet/train', 'ImageNet-1K'),
    (DET, 'data/coco/train2017', 'COCO 2017'),
    (SEG, 'images/training', 'ADE20K'),
])
def test_missing_data(tiny, train, fails, config, name, folder, source):
    message = fails(train, config(name), '--work-dir', 'work', '--pretrained', 'none')
    for part in (folder, source, '--mini', '--data-root'):
        assert part in message
    assert not (tiny / 'work').exists()


@pytest.mark.parametrize('content, message', [
    ('[1, 2', 'is not an annotation file'),
    ('[1, 2]', "no list 'images'"),
    ('{"images": [], "annotations": []}', "no list 'categories'"),
    ('{"images": ["a.jpg"], "annotations": []}', 'something other than objects'),
])
def test_annotations_that_are_not_coco(tiny, train, fails, config, content,
                                       message):
    for folder in ('annotations', 'train2017', 'val2017'):
        (tiny / 'own' / folder).mkdir(parents=True)
    path = tiny / 'own/annotations/instances_train2017.json'
    path.write_text(content)
    text = fails(train, config(DET), '--work-dir', 'work', '--data-root', 'own',
                 '--pretrained', 'none')
    assert re.search(message, text) and path.name in text
    assert not (tiny / 'work').exists()


@pytest.mark.parametrize('name, parts', [
    (DET, ['get SOFT_Tiny from https://github.com/fudan-zvg/SOFT',
           'checkpoints/soft_tiny.pth']),
    ('det/swiftformer_xs_maskrcnn_1x.py', [
        'timm/swiftformer_xs.dist_in1k/resolve/main/model.safetensors: download failed',
        'checkpoints/swiftformer_xs.safetensors'])])
def test_published_weights_out_of_reach(tiny, train, fails, config, monkeypatch, hub,
                                        name, parts):
    """One error before data is read; the data set is missing, too."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    message = fails(train, config(name), '--work-dir', 'work')
    for part in (*parts, '--pretrained none', '--pretrained FILE'):
        assert part in message
    assert not (tiny / 'work').exists()


def test_evaluator_that_was_not_moved(tiny, train, fails, config):
    generate_dataset('coco', 'own', num_train=2, num_val=1)
    moved = [f'{part}_dataloader.dataset.data_root=own/coco'
             for part in ('train', 'val')]
    classes = [f'{part}_dataloader.dataset.metainfo.classes=("circle","square")'
               for part in ('train', 'val')]
    message = fails(train, config(DET), '--pretrained', 'none', '--cfg-options',
                    *moved, *classes)
    assert 'data/coco/annotations' in message and 'val_evaluator' in message
    assert not (tiny / 'work_dirs').exists()


def test_annotations_of_other_classes(tiny, train, fails, config):
    generate_dataset('coco', 'own', num_train=2, num_val=1)
    message = fails(train, config(DET), '--data-root', 'own/coco', '--pretrained',
                    'none', '--cfg-options',
                    'train_dataloader.dataset.metainfo.classes=("cat",)')
    assert "lacks the categories 'cat'; it has 'circle', 'square'" in message


@pytest.mark.parametrize('write, message', [
    (lambda path: None, 'does not exist'),
    (lambda path: path.mkdir(), 'is a folder; expected a file'),
    (lambda path: path.write_bytes(b''), 'not a checkpoint, or an incomplete one'),
    (lambda path: torch.save({'state_dict': {}}, path), 'no training state'),
    (lambda path: torch.save([1], path), 'expected a dict'),
])
def test_checkpoint_to_resume(tiny, train, fails, config, write, message):
    path = tiny / 'checkpoint.pth'
    write(path)
    assert message in fails(train, config(DET), '--mini', '--work-dir', 'work',
                            '--resume', path)
    assert not (tiny / 'work').exists()


def test_checkpoint_of_another_model(tiny, train, fails, config):
    path = tiny / 'other.pth'
    other = {'conv.weight': torch.zeros(1)}
    torch.save({'meta': {'epoch': 1, 'iter': 1}, 'optimizer': {'param_groups': []},
                'message_hub': {}, 'state_dict': other}, path)
    name = 'backbone.stem.0.weight'
    for option, message in (
        (['--resume', path], 'does not fit'),
        (['--cfg-options', f'load_from={path}'], 'has no weights for')):
        text = fails(train, config(DET), '--mini', '--work-dir', 'work', *option)
        assert message in text and name in text and str(path) in text
        assert not (tiny / 'work').exists()


def test_truncated_checkpoint(tiny, train, fails, config):
    path = tiny / 'checkpoint.pth'
    torch.save({'meta': {}, 'optimizer': {},
                'state_dict': {'x': torch.rand(5000)}}, path)
    path.write_bytes(path.read_bytes()[:9000])
    assert 'truncated' in fails(train, config(DET), '--mini', '--resume', path)


def test_amp_without_gpu(tiny, train, fails, config):
    assert '--amp needs a GPU' in fails(train, config(DET), '--mini', '--amp')


def test_mini_data_in_the_way(tiny, train, fails, config):
    (tiny / 'data/mini/coco').mkdir(parents=True)
    assert 'Move it away' in fails(train, config(DET), '--mini')


def test_corrupt_pictures_are_skipped(tiny, train, config):
    folder = generate_dataset('ade', tiny / 'own', num_train=4, num_val=1)
    broken = sorted((folder / 'images/training').iterdir())
    broken[0].write_bytes(b'not a picture')
    broken[1].write_bytes(broken[1].read_bytes()[:300])
    broken[2].write_bytes(b'')
    train([config(SEG), '--mini', '--work-dir', 'work', '--data-root', str(folder),
           '--cfg-options', 'train_cfg.max_iters=2', 'train_dataloader.batch_size=4',
           'log_level=ERROR'])
    assert (tiny / 'work/iter_2.pth').exists()
    assert json.loads((tiny / 'work/untrained.json').read_text())['mIoU'] >= 0
    pictures = list((tiny / 'work/predictions').iterdir())
    assert [p.suffix for p in pictures] == ['.jpg']


RECORDER = '''
import json
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Recorder(Hook):
    """Resolution of every batch, and weights in the end."""
    sizes = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.sizes.append(list(data_batch['inputs'].shape[2:]))

    def after_train(self, runner):
        hooks = {type(hook).__name__: hook for hook in runner.hooks}
        tensors = [*runner.model.module.parameters(),
                   *hooks['EMAHook'].ema_model.parameters(),
                   *hooks['PreciseBNEvalHook'].statistics.values()]
        with open(f'{get_rank()}.json', 'w') as file:
            json.dump(dict(sizes=self.sizes,
                           mesa=runner.model.module.mesa is not None,
                           norms=[t.double().norm().item() for t in tensors]), file)
'''


def test_two_processes(tmp_path, config):
    """By the script: one process generates data, two train as one."""
    (tmp_path / 'recorder.py').write_text(RECORDER)
    (tmp_path / 'recorded.py').write_text(
        f"_base_ = {config('cls/lowformer_e2_300e.py')!r}\n"
        "custom_imports = dict(imports=['mm_efficient', 'recorder'])\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='Recorder')]\n"
        # everything of the recipe, on a small model
        "arch = dict(embed_dims=[32, 64, 128, 256], depths=[0, 0, 1, 1],\n"
        "            stem_dims=16, stem_depth=0, down_ratio=4, attention=False,\n"
        "            mlp=False)\n"
        "model = dict(backbone=dict(arch=dict(_delete_=True, **arch)),\n"
        "             head=dict(in_channels=256, hidden_dims=(64, 64)))\n")
    env = dict(os.environ, PYTHON=sys.executable, PORT='29577', OMP_NUM_THREADS='1',
               PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ['PYTHONPATH']]))
    done = subprocess.run(
        ['bash', ROOT / 'tools/dist_train.sh', 'recorded.py', '2', '--mini',
         '--work-dir', 'work', '--cfg-options', 'train_cfg.max_epochs=1',
         'optim_wrapper.accumulative_counts=1', 'train_dataloader.batch_size=2',
         'train_dataloader.dataset.indices=16', 'val_dataloader.dataset.indices=2',
         'default_hooks.logger.interval=1'],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    output = done.stdout + done.stderr
    assert output.count('Generating 200 images') == 1
    assert 'Epoch(train) [1][4/4]' in output  # 16 images, 2 x 2 at a time
    assert 'GPU number: 2' in output
    assert list((tmp_path / 'work').glob('*.pth'))
    first, second = (json.loads((tmp_path / f'{rank}.json').read_text())
                     for rank in (0, 1))
    assert len(first['sizes']) == 4 and len({*map(tuple, first['sizes'])}) > 1
    assert first == second and first['mesa']
