import pytest

from mm_efficient.runs import mini
from mm_efficient.weights import loading


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An empty working folder; --mini has few images at half the usual size."""
    monkeypatch.chdir(tmp_path)
    loading._kept.clear()  # what a test that failed on purpose has read
    generate = mini.generate_dataset
    monkeypatch.setattr(
        mini, 'generate_dataset',
        lambda name: generate(name, num_train=4, num_val=2))
    for recipe in mini.RECIPES.values():
        monkeypatch.setitem(recipe, 'size', 64)
    return tmp_path
