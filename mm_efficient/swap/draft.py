"""A config that is edited in place, with a list of what was changed and why."""
import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

Path = tuple[str | int, ...]  # keys of dicts and positions in lists
DELETE = '_delete_'  # MMEngine's mark of a dict that replaces that of the base


class Change(NamedTuple):
    """One setting that differs from the stock config.

    Args:
        setting (str): Its place, such as 'model.neck[0].in_channels'.
        before (str): What it was.
        after (str): What it is.
        reason (str): Why.
    """

    setting: str
    before: str
    after: str
    reason: str


class Draft:
    """A copy of a config to edit.

    Args:
        cfg (dict): The stock config; not changed.

    Attributes:
        changes (list[Change]): What :meth:`set` and :meth:`note` have recorded.
    """

    def __init__(self, cfg: dict) -> None:
        self._stock = cfg
        self.cfg: dict[str, Any] = copy.deepcopy(cfg)
        self.changes: list[Change] = []

    def get(self, *path: str | int) -> Any:
        """Return the value at a path, None if there is none."""
        return look_up(self.cfg, path)

    def set(self, path: Path, value: Any, reason: str, before: Any = None,
            after: Any = None) -> None:
        """Change a setting, and record it unless it was like that already.

        Args:
            path (Path): Where.
            value (Any): The new value.
            reason (str): Why, for the user.
            before (Any, optional): What to show of the old value. Defaults to None,
                all of it.
            after (Any, optional): What to show of the new value. Defaults to None, all
                of it.
        """
        node = self.cfg
        for key in path[:-1]:
            if isinstance(key, str) and node.get(key) is None:
                node[key] = {}
            node = node[key]  # type: ignore[index]
        old = look_up(self.cfg, path)
        if old == value and type(old) is type(value):
            return
        node[path[-1]] = value  # type: ignore[index]
        self.note(path, old if before is None else before,
                  value if after is None else after, reason)

    def note(self, path: Path, before: Any, after: Any, reason: str) -> None:
        """Record something that the user should know."""
        self.changes.append(
            Change(path_name(path), _show(before), _show(after), reason))

    def overrides(self) -> dict[str, Any]:
        """What a config with the stock one as its base has to say."""
        return _difference(self._stock, self.cfg)


def look_up(node: Any, path: Sequence[str | int]) -> Any:
    """Follow a path into nested dicts and lists.

    Args:
        node (Any): Where it starts.
        path (Sequence[str | int]): The keys and positions.

    Returns:
        Any: What is there, None if the path ends before.
    """
    for key in path:
        if isinstance(key, int):
            node = node[key]
        elif not isinstance(node, dict):
            return None
        else:
            node = node.get(key)
    return node


def path_name(path: Sequence[str | int]) -> str:
    """Write a path as in Python, such as 'model.neck[0].in_channels'."""
    return ''.join(f'[{key}]' if isinstance(key, int) else f'.{key}'
                   for key in path).lstrip('.')


def _show(value: Any) -> str:
    if isinstance(value, dict):
        kind = value.get('type')
        return str(getattr(kind, '__name__', None) or kind or '...')
    return '' if value is None else str(value)


def _difference(old: dict, new: dict) -> dict[str, Any]:
    """Overrides that turn one dict into another when MMEngine merges them.

    Lists are written whole. A dict that loses keys is written whole too, and replaces
    the old one.
    """
    if set(old) - set(new):
        return {DELETE: True, **new}
    found = {}
    for key, value in new.items():
        if key in old and old[key] == value and type(old[key]) is type(value):
            continue
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            value = _difference(old[key], value)
        elif isinstance(value, dict) and key in old:
            value = {DELETE: True, **value}
        found[key] = value
    return found
