"""Connections between threads, as the standard library's `multiprocessing.dummy.connection`: not built yet."""

__all__ = ['Client', 'Listener', 'Pipe']

from .. import _unbuilt

families = [None]

Listener = _unbuilt.unbuilt_class('Listener', __name__)
Connection = _unbuilt.unbuilt_class('Connection', __name__)
Client = _unbuilt.unbuilt_function('Client', __name__)
Pipe = _unbuilt.unbuilt_function('Pipe', __name__)
