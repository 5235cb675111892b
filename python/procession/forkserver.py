"""The fork server, as the standard library's `multiprocessing.forkserver`: not built yet.

What it is to preload can be said; starting a process by it raises an error.
"""

__all__ = ['ensure_running', 'get_inherited_fds', 'connect_to_new_process', 'set_forkserver_preload']

from . import _unbuilt

MAXFDS_TO_SEND = 256

_preload_modules = ['__main__']


def set_forkserver_preload(modules_names):
    """Names the modules that the server is to import before it forks."""
    global _preload_modules
    if not all(type(name) is str for name in modules_names):
        raise TypeError('module_names must be a list of strings')
    _preload_modules = modules_names


ForkServer = _unbuilt.unbuilt_class('ForkServer', __name__)
ensure_running = _unbuilt.unbuilt_function('ensure_running', __name__)
get_inherited_fds = _unbuilt.unbuilt_function('get_inherited_fds', __name__)
connect_to_new_process = _unbuilt.unbuilt_function('connect_to_new_process', __name__)
main = _unbuilt.unbuilt_function('main', __name__)
read_signed = _unbuilt.unbuilt_function('read_signed', __name__)
write_signed = _unbuilt.unbuilt_function('write_signed', __name__)
