from pathlib import Path

import pytest
from loading import load_tool

from mm_efficient.runs import mini

ROOT = Path(__file__).parents[2]


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
def tiny(tmp_path, monkeypatch, shallow):
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
