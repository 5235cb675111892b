"""The standard library's own modules, whatever the name `multiprocessing` means by the time somebody looks.

A process hardly ever needs them, and a child would take longer to import them than all of this package. So they are loaded by whoever
asks for one here, by the program itself, and with `logging`, which asks them for the name of the process. This is the one place that
imports them: `_alias` may put this package in their place afterwards.
"""

__all__ = []

import importlib
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

_NAMES = {name: 'multiprocessing.' + name for name in ('context', 'process', 'reduction')}


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    load()
    return globals()[name]


def load():
    """Loads them all, for good."""
    if not all(name in globals() for name in _NAMES):
        modules = _import()
        if any(module.__name__ != _NAMES[name] for name, module in modules.items()):
            modules = _import_behind_alias()
        globals().update(modules)
    be()


def _import():
    return {name: importlib.import_module(path) for name, path in _NAMES.items()}


def _import_behind_alias():
    """Imports them although somebody else than `_alias` has put another package in their place, by a finder of his own."""
    def take():
        names = [name for name in sys.modules if name.partition('.')[0] == 'multiprocessing']
        return {name: sys.modules.pop(name) for name in names}

    finders, others = sys.meta_path[:], take()
    sys.meta_path[:] = (BuiltinImporter, FrozenImporter, PathFinder)
    try:
        return _import()
    finally:
        sys.meta_path[:] = finders
        take()
        sys.modules.update(others)


def loaded(name):
    """One of them, if it has been loaded so far; else None."""
    return globals().get(name) or sys.modules.get(_NAMES[name])


def be():
    """Has the standard library take the current process for its own, if that is a child of ours."""
    ours = sys.modules.get(__package__ + '.process')
    if getattr(ours, '_parent', None) and (process := loaded('process')):
        process._current_process = ours._current_process


class _Finder:
    """Finds nothing, but sees what is imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == 'logging':
            load()
        elif name == _NAMES['reduction']:
            # The last one: the others are there.
            be()


sys.meta_path.insert(0, _Finder)
if 'logging' in sys.modules:
    load()
