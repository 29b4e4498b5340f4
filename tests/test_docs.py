"""Everything that README.md, CONTRIBUTING.md and docs/ tell people to type.

Blocks of Python and commands are run, unless the line before them is

    <!-- only parsed: why a test cannot run it -->

Then Python must compile, and the scripts, options and configs that a command names must
exist. Comments at the end of a Python block are the output it must print.
"""
import ast
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import is_installed
from PIL import Image

from mm_efficient.analysis.models import find_model
from mm_efficient.datasets.mini import generate_dataset
from mm_efficient.deploy.exporting import INPUT_NAME
from mm_efficient.errors import InputError
from mm_efficient.files import config_files
from mm_efficient.runs import mini
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.work_dirs import latest_checkpoint
from mm_efficient.weights import FAMILIES

ROOT = Path(__file__).parents[1]
SITE = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
PAGES = [*SITE, ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md']
LANGUAGES = ('bash', 'bibtex', 'python', 'text')
BLOCK = re.compile(r'^(?:<!-- only parsed: (?P<reason>[^\n]+) -->\n)?'
                   r'```(?P<language>[^\n]*)\n(?P<code>.*?)^```$', re.M | re.S)
# Programs of the extra dev, and their packages
DEV_TOOLS = {'lint-imports': 'import-linter', 'mypy': 'mypy', 'ruff': 'ruff',
             'uv': 'uv', 'uvx': 'uv', 'pre-commit': 'pre-commit', 'mkdocs': 'mkdocs'}
PLACEHOLDER = re.compile(r'[A-Z_]+')  # CONFIG, CHECKPOINT, ...

pytestmark = pytest.mark.skipif(
    not (ROOT / 'docs').exists(), reason='runs in a checkout')


class Block(NamedTuple):
    """A fenced block; ``reason`` says why it is only parsed."""
    language: str
    code: str
    reason: str | None


def blocks(language):
    """All blocks of a language, with page and line as id."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        for match in BLOCK.finditer(text):
            block = Block(match['language'], match['code'], match['reason'])
            line = text.count('\n', 0, match.start('code'))
            if block.language == language:
                found.append(
                    pytest.param(block, id=f'{page.relative_to(ROOT)}:{line}'))
    return found


def commands(code):
    """The commands of a block, each as a list of words."""
    lines = re.split(r'\n|&&', code.replace('\\\n', ' '))
    return [words for words in (shlex.split(line, comments=True) for line in lines)
            if words]


# --------------------------------------------------------------- parsing commands


@cache
def load_tool(script):
    path = ROOT / script
    assert path.is_file(), f'there is no {script}'
    spec = importlib.util.spec_from_file_location(f'docs_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # scripts import their neighbours
        patch.setattr(sys, 'path', [str(path.parent), *sys.path])
        spec.loader.exec_module(module)
    return module


@cache
def check_config(config, options):
    """The config exists and loads with the given ``--cfg-options``."""
    assert (ROOT / config).is_file(), f'there is no {config}'
    load_config(str(ROOT / config), ast.literal_eval(options))


check_model = cache(find_model)


def strip_environment(words):
    """Drop leading variables and ``bash tools/env.sh``."""
    while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
        words = words[1:]
    if words[:2] == ['bash', 'tools/env.sh']:
        assert (ROOT / 'tools' / 'env.sh').is_file()
        return strip_environment(words[2:])
    return words


def check_tool(script, arguments, monkeypatch):
    """Parse the command line of a tool, and find the configs and models it names."""
    module = load_tool(script)
    monkeypatch.setattr('sys.argv', [script, *arguments])
    args = module.parse_args()
    config = getattr(args, 'config', None)
    made = config and config.startswith('work_dirs/')  # by a command before
    if config and '::' in config:
        load_config(config)
    elif config and not made and not PLACEHOLDER.fullmatch(config):
        check_config(config, repr(args.cfg_options))
    for name in getattr(args, 'models', []):
        check_model(name)


def check_python(arguments, monkeypatch):
    script, *arguments = arguments
    if script == '-m':  # runs a tool of a checkout of MMDetection or MMSegmentation
        package, tool, *_ = arguments
        assert package == 'mm_efficient' and '/tools/' in tool
        return
    check_tool(script, arguments, monkeypatch)


def check_shell(arguments, monkeypatch):
    """Scripts; tools/{dist,slurm}_{train,test}.sh pass arguments on to a tool."""
    script, *arguments = arguments
    assert (ROOT / script).is_file(), f'there is no {script}'
    if script == '.ci/run':
        assert not arguments
        return
    if script == 'tools/gpu_report.sh':
        text = (ROOT / script).read_text()
        parts = '+'.join(arguments[1:]).split('+') if arguments[1:] else []
        assert arguments and all(re.search(rf'\b{part}\b', text) for part in parts)
        return
    kind, _, tool = Path(script).stem.partition('_')
    own = 1 if tool == 'train' else 2  # CONFIG, and CHECKPOINT to test
    if kind == 'dist':
        assert arguments.pop(own).isdigit(), 'expected the number of GPUs'
    else:
        arguments = arguments[2:]  # PARTITION, JOB_NAME
        if tool == 'train':
            arguments.insert(own, '--work-dir')
    check_tool(f'tools/{tool}.py', arguments, monkeypatch)


def check_pytest(arguments, monkeypatch):
    """The paths and markers exist, and the word after ``-k`` occurs in the paths."""
    if '-m' in arguments:
        index = arguments.index('-m')
        settings = (ROOT / 'pyproject.toml').read_text()
        for marker in {*arguments[index + 1].split()} - {'and', 'or', 'not'}:
            assert f'"{marker}: ' in settings, f'there is no marker {marker}'
        arguments = arguments[:index] + arguments[index + 2:]
    arguments = [each for each in arguments if not re.fullmatch(r'-n\d+', each)]
    paths, word = arguments, None
    if '-k' in arguments:
        paths, word = arguments[:arguments.index('-k')], arguments[-1]
    files = []
    for path in paths:
        assert (ROOT / path).exists(), f'there is no {path}'
        files += [ROOT / path, *(ROOT / path).rglob('*.py')]
    if word:
        assert any(word.lower() in file.name + file.read_text().lower()
                   for file in files if file.is_file()), f'no {word} in {paths}'


def check_pip(arguments, monkeypatch):
    command, *arguments = arguments
    assert command in ('install', 'uninstall', 'wheel')
    if command == 'install':
        assert 'mmcv-lite' not in arguments, 'MMDetection refuses the latest release'
    tree = ast.parse((ROOT / 'setup.py').read_text())
    extras = next(keyword.value for keyword in ast.walk(tree)
                  if isinstance(keyword, ast.keyword)
                  and keyword.arg == 'extras_require')
    known = {keyword.arg for keyword in extras.keywords}
    for argument in arguments:
        if match := re.fullmatch(r'(?:\.|mm-efficient)\[(.*)\]', argument):
            assert set(match[1].split(',')) <= known, f'no extra {match[1]}'


def check_mim(arguments, monkeypatch):
    command, *arguments = arguments
    assert command in ('list', 'search', 'train', 'test', 'run')
    if command in ('list', 'search'):
        return
    if command == 'run':
        package, tool, *arguments = arguments
        found = list((ROOT / 'tools').rglob(f'{tool}.py'))
        assert package == 'mm_efficient' and len(found) == 1, f'{tool}: {found}'
        configs = {path.name: str(path) for path in config_files()}
        arguments = [configs.get(word, word) for word in arguments]
        check_tool(str(found[0].relative_to(ROOT)), arguments, monkeypatch)
        return
    package, config, *arguments = arguments
    found = list((ROOT / 'configs').rglob(config))
    assert package == 'mm_efficient' and len(found) == 1, f'{config}: {found}'
    own, others = {}, []  # MIM's options, all with a value, and those of our tool
    while arguments:
        word = arguments.pop(0)
        if word in ('--gpus', '--launcher', '--checkpoint'):
            own[word] = arguments.pop(0)
        else:
            others.append(word)
    if command == 'test':
        others.insert(0, own['--checkpoint'])
    check_tool(f'tools/{command}.py', [str(found[0]), *others], monkeypatch)


def check_git(arguments, monkeypatch):
    assert arguments[0] in ('clone', 'tag')


def check_cd(arguments, monkeypatch):
    assert arguments == ['mm_efficient']


def check_dev_tool(package, arguments, monkeypatch):
    """The package is among the extras for development."""
    assert f"'{package}" in (ROOT / 'setup.py').read_text()


def check_trtexec(arguments, monkeypatch):
    options = dict(word.removeprefix('--').partition('=')[::2] for word in arguments)
    assert Path(options['onnx']).suffix == '.onnx'
    shapes = [options[f'{which}Shapes'] for which in ('min', 'opt', 'max')]
    sizes = [list(map(int, shape.removeprefix(f'{INPUT_NAME}:').split('x')))
             for shape in shapes]
    assert all(len(size) == 4 and size[1] == 3 for size in sizes)
    assert all(a <= b <= c for a, b, c in zip(*sizes))


PROGRAMS = dict(python=check_python, bash=check_shell, pytest=check_pytest,
                pip=check_pip, mim=check_mim, trtexec=check_trtexec, git=check_git,
                cd=check_cd, **{program: partial(check_dev_tool, package)
                                for program, package in DEV_TOOLS.items()})


def check_command(words, monkeypatch):
    program, *arguments = strip_environment(words)
    assert program in PROGRAMS, f'there is no test for commands of {program}'
    PROGRAMS[program](arguments, monkeypatch)


# ------------------------------------------------------------------------- tests


@pytest.mark.parametrize('block', blocks('bash'))
def test_commands(block, monkeypatch, tmp_path, capsys):
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    for words in commands(block.code):
        check_command(words, monkeypatch)
        if block.reason:
            continue
        program, script, *arguments = strip_environment(words)
        assert program == 'python', f'{words} cannot be run here: say why it is not'
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr('sys.argv', [script, *arguments])
        load_tool(script).main()
        assert capsys.readouterr().out


# ------------------------------------------------------------- docs/own_data.md


def helmets():
    """Boxes of one category."""
    folder = generate_dataset('coco', 'generated', num_train=4, num_val=2)
    for path in (folder / 'annotations').glob('*.json'):
        content = json.loads(path.read_text())
        content['categories'] = [dict(id=9, name='helmet')]
        for annotation in content['annotations']:
            annotation['category_id'] = 9
        path.write_text(json.dumps(content))
    folder.rename('helmets')
    return 'helmets/val2017/000000000001.jpg', ['helmet']


def roads():
    """Label maps of three classes, the background being 0."""
    folder = generate_dataset('ade', 'generated', num_train=4, num_val=2)
    for path in folder.rglob('*.png'):
        labels = np.digitize(np.array(Image.open(path)), [3, 5])
        Image.fromarray(labels.astype(np.uint8)).save(path)
    folder.rename('roads')
    return 'roads/images/validation/ADE_val_00000001.jpg', ['background', 'road', 'car']


def birds():
    """Folders of three classes."""
    folder = generate_dataset('imagenet', 'generated', num_train=10, num_val=5)
    names = ['eagle', 'owl', 'wren']
    for part in ('train', 'val'):
        old = sorted((folder / part).iterdir())
        for path, name in zip(old, names):
            path.rename(folder / part / name)
        for path in old[len(names):]:
            shutil.rmtree(path)
    folder.rename('birds')
    return next(Path('birds/val/owl').iterdir()), names


def cut_short(cfg):
    """One epoch or iteration at 64 pixels, from scratch."""
    mini._shrink_images(cfg, 64)
    length = {'max_epochs', 'max_iters'} & set(cfg.train_cfg)
    cfg.train_cfg.update({key: 1 for key in length}, val_interval=1)
    cfg.default_hooks.checkpoint.interval = 1
    cfg.train_dataloader.batch_size = 2
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.model.backbone.init_cfg = None
    return cfg


@pytest.mark.parametrize('title, make_data', [
    ('Detection', helmets), ('Segmentation', roads), ('Classification', birds)])
def test_own_data_from_folder_to_test(title, make_data, monkeypatch, tmp_path, shallow):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.setattr(
        'mm_efficient.runs.training.load_config',
        lambda *args, **options: cut_short(load_config(*args, **options)))
    image, classes = make_data()
    page = (ROOT / 'docs/own_data.md').read_text(encoding='utf-8')
    section = page.partition(f'\n## {title}\n')[2].partition('\n## ')[0]
    block, = (m['code'] for m in BLOCK.finditer(section) if m['language'] == 'bash')
    for program, script, *arguments in commands(block):
        assert program == 'python'
        files = {'IMAGE': str(image), 'CHECKPOINT': latest_checkpoint(
            f'work_dirs/{make_data.__name__}')}
        monkeypatch.setattr('sys.argv', [
            script, *(files.get(word, word) for word in arguments)])
        load_tool(script).main()
    assert json.loads(Path('predictions/predictions.json').read_text())[
        'classes'] == classes
    host = dict(Detection='mmdet', Segmentation='mmseg').get(title)
    tool = host and Path(importlib.import_module(host).__file__).parent.joinpath(
        '.mim/tools/test.py')
    if tool and tool.is_file():  # test-time augmentation by the host itself
        monkeypatch.setattr('sys.argv', [
            'test.py', arguments[1], files['CHECKPOINT'], '--tta',
            '--work-dir', 'tested'])
        runpy.run_path(str(tool), run_name='__main__')
        assert list(Path('tested').glob('*/*.json'))


@pytest.mark.parametrize('words', [
    'python tools/none.py',
    'python tools/train.py configs/det/none.py',
    'python tools/train.py configs/det/soft_tiny_maskrcnn_1x.py --none',
    'bash tools/env.sh python tools/test.py configs/det/soft_tiny_maskrcnn_1x.py',
    'python tools/analysis_tools/get_flops.py soft_none',
    'bash tools/none.sh CONFIG 8',
    'bash tools/dist_train.sh configs/det/none.py 8',
    'NNODES=2 bash tools/dist_train.sh CONFIG 8 --none',
    'bash tools/slurm_train.sh PARTITION JOB_NAME configs/det/none.py WORK_DIR',
    'bash tools/gpu_report.sh report part9',
    'pytest tests/none.py',
    'pytest -m none',
    'pytest tests/configs -k no' + 'ne_at_all',
    'pip install -e .[none]',
    'pip install -e .[all] mmcv-lite',
    'mim train mm_efficient none.py --gpus 0',
    'mim run mm_efficient none soft_tiny',
    'mim run mm_efficient infer IMAGE none.py CHECKPOINT',
    'mim train mm_efficient soft_tiny_maskrcnn_1x.py --gpus 0 --none',
    'trtexec --onnx=model.pt',
    'git push',
    'cd elsewhere',
    'bash .ci/run pytest',
    'something else',
])
def test_what_does_not_exist_fails(words, monkeypatch):
    with pytest.raises((AssertionError, SystemExit, InputError)):
        check_command(shlex.split(words), monkeypatch)


@pytest.mark.parametrize('block', blocks('python'))
def test_python(block, tmp_path, monkeypatch, capsys):
    code = compile(block.code, '<docs>', 'exec')
    if '_base_ =' in block.code:
        check_swap(code)
        if not block.reason:
            build_config(block.code, tmp_path)
    elif not block.reason:
        monkeypatch.chdir(tmp_path)
        registered = dict(MODELS.children['mmpretrain'].module_dict), list(FAMILIES)
        torch.manual_seed(0)
        exec(code, {'__name__': 'docs'})
        MODELS.children['mmpretrain']._module_dict, FAMILIES[:] = registered
        printed = re.search(r'(?:^# [^\n]*\n)*\Z', block.code, re.M)[0]
        output = [line for line in capsys.readouterr().out.splitlines()
                  if ' - mmengine - ' not in line]
        assert output == [line.removeprefix('# ') for line in printed.splitlines()]


def check_swap(code):
    """The backbone builds, and its channels are those that neck or head expects."""
    names = {}
    exec(code, names)
    model = names['model']
    settings = {key: value for key, value in model['backbone'].items()
                if key != '_delete_'}
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        backbone = MODELS.build(settings)
    widths = [backbone.feature_channels[i] for i in backbone.out_indices]
    user = model.get('neck') or model.get('decode_head') or model['head']
    expected = user['in_channels']
    assert (expected if isinstance(expected, list) else [expected]) == widths


def build_config(code, folder):
    path = folder / re.match(r'# (\w+\.py)', code)[1]
    path.write_text(code)
    package = re.search(r"_base_ = '(\w+)::", code)[1]
    if package == 'mmseg' and not is_installed('mmsegmentation'):
        pytest.skip("OneDL's MMSegmentation is not found by mmseg::")
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        with torch.device('meta'):
            model = MODELS.build(config.model)
    assert type(model.backbone).__name__ in code


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_fences_and_links(page):
    text = page.read_text(encoding='utf-8')
    fences = re.findall(r'^```(.*)$', text, re.M)
    assert set(fences[::2]) <= set(LANGUAGES) and not any(fences[1::2])
    assert text.count('<!-- only parsed:') == sum(
        match['reason'] is not None for match in BLOCK.finditer(text))
    for link in re.findall(r'\]\((?!https?:)([^)\s]+)\)', BLOCK.sub('', text)):
        target, _, anchor = link.partition('#')
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), f'{page.name}: {link}'
        if anchor:
            titles = re.findall(r'^#+ (.*)$', path.read_text(encoding='utf-8'), re.M)
            slugs = {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
                     for title in titles}
            assert anchor in slugs, f'{page.name}: {link}'


@pytest.mark.parametrize('expression, processes', [
    ('', None), ('slow', None), ('cuda and part1', None), ('cuda and not part2', None),
    ('cuda and part2', 0), ('cuda', 0), ('trials', 0)])
def test_what_is_timed_runs_in_one_process(expression, processes, pytestconfig):
    """docs/gpu.md: all other tests on a GPU take several, which compile for minutes."""
    plugin, = (plugin for plugin in pytestconfig.pluginmanager.get_plugins()
               if getattr(plugin, '__file__', '') == str(ROOT / 'tests/conftest.py'))
    config = SimpleNamespace(option=SimpleNamespace(markexpr=expression))
    assert plugin.pytest_xdist_auto_num_workers(config) == processes


def test_every_page_is_in_the_navigation():
    def leaves(entry):
        if isinstance(entry, str):
            return {entry}
        values = entry.values() if isinstance(entry, dict) else entry
        return {leaf for value in values for leaf in leaves(value)}

    settings = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
    pages = {path.relative_to(ROOT / 'docs').as_posix() for path in SITE[1:]}
    by_folder = {page for page in pages if page.startswith('families/')}
    # docs/mkdocs_hooks.py replaces the folder by its pages
    assert leaves(settings['nav']) == pages - by_folder | {
        'families', 'index.md', 'contributing.md', 'changelog.md'}
