"""The standard library's own `queues`, on our locks and connections: for classes that replace parts of how those queues work."""

__all__ = ['queues']

import os
import sys
import types
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location

from .connection import Connection


def _pipe(duplex):
    """A pipe of the system's, which processes outside of this tree can be given, too: loky starts its workers by itself."""
    reader, writer = os.pipe()
    return Connection(reader, writable=False), Connection(writer, readable=False)


def _load():
    """Loads them as a module of this package, so that what they import from theirs is ours."""
    package = PathFinder.find_spec('multiprocessing')
    found = PathFinder.find_spec('multiprocessing.queues', package.submodule_search_locations)
    spec = spec_from_file_location(__package__ + '._queues_of_the_standard', found.origin)
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.connection = types.SimpleNamespace(Pipe=_pipe)
    return module


queues = _load()
