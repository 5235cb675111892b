"""This package in the place of the standard library's, for `python -m procession` and the children of its program.

`import multiprocessing.x` then gives the very module `procession.x`. Nothing falls back: what this package lacks is
missing. Its own modules have the standard's from `_standard`.
"""

__all__ = []

import importlib.util
import sys
from importlib.machinery import ModuleSpec

from . import _standard

_STANDARD = 'multiprocessing'
_PACKAGE = __name__.rpartition('.')[0]

#: Whether it was installed: children have it installed too.
installed = False


def _within(name):
    return name == _STANDARD or name.startswith(_STANDARD + '.')


class _Finder:
    """Finds the package's modules under the standard names."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if not _within(name):
            return None
        ours = _PACKAGE + name.removeprefix(_STANDARD)
        if importlib.util.find_spec(ours) is None:
            return None
        return ModuleSpec(name, _Loader(ours))


class _Loader:
    """Loads a module by putting another one in its place."""

    def __init__(self, ours):
        self._ours = ours

    def create_module(self, spec):
        """Leaves the placeholder to the import system."""

    def exec_module(self, module):
        sys.modules[module.__name__] = importlib.import_module(self._ours)


def install():
    """Puts this package in the standard library's place, for the rest of this process' life."""
    global installed
    if installed:
        return
    installed = True
    _standard.load()
    for name in list(filter(_within, sys.modules)):
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder)
    sys.modules[_STANDARD] = sys.modules[_PACKAGE]
