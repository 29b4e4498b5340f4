"""Import tools, which are scripts."""
import importlib.util
from pathlib import Path

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
