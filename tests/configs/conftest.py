import functools

import pytest
from recipe_runner import Recipe


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    """Recipes by the name of their config, built once."""
    return functools.cache(
        lambda name: Recipe(name, tmp_path_factory.mktemp('recipe')))
