import importlib.util
from pathlib import Path

import pytest

from mm_efficient.runs import mini

ROOT = Path(__file__).parents[2]


def load_module(name):
    """Import a tool by its path below tools/ without suffix."""
    path = ROOT / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'tool_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_tool(name):
    return load_module(name).main


@pytest.fixture(scope='session')
def tool():
    """``main`` of a tool, by its path below tools/ without suffix."""
    return load_tool


@pytest.fixture(scope='session')
def train():
    """``main`` of tools/train.py."""
    return load_tool('train')


@pytest.fixture(scope='session')
def test():
    """``main`` of tools/test.py."""
    return load_tool('test')


@pytest.fixture
def config():
    """Path of a config by its name below configs/."""
    return lambda name: str(ROOT / 'configs' / name)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An empty working folder; --mini has eight small images there."""
    monkeypatch.chdir(tmp_path)
    generate = mini.generate_dataset
    monkeypatch.setattr(
        mini, 'generate_dataset',
        lambda name: generate(name, num_train=8, num_val=4))
    for recipe in mini.RECIPES.values():
        monkeypatch.setitem(recipe, 'size', 64)
    return tmp_path


@pytest.fixture
def fails(capsys):
    """Run a tool that must end in one message; return the message."""

    def run(main, *args):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args])
        message = stop.value.code
        assert isinstance(message, str) and message.startswith('error: ')
        return message

    return run
