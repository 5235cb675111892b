"""The cleaner of named resources, as the standard library's `multiprocessing.resource_tracker`: not built yet.

Nothing in this package has a name so far, so there is nothing to track.
"""

__all__ = ['ensure_running', 'register', 'unregister']

from . import _unbuilt

ResourceTracker = _unbuilt.unbuilt_class('ResourceTracker', __name__)
ensure_running = _unbuilt.unbuilt_function('ensure_running', __name__)
register = _unbuilt.unbuilt_function('register', __name__)
unregister = _unbuilt.unbuilt_function('unregister', __name__)
getfd = _unbuilt.unbuilt_function('getfd', __name__)
main = _unbuilt.unbuilt_function('main', __name__)
