"""Managers, as the standard library's `multiprocessing.managers`: not built yet.

Types can be registered, so that a module that does so at its top can be imported.
"""

__all__ = ['BaseManager', 'SyncManager', 'BaseProxy', 'Token', 'SharedMemoryManager']

from . import _unbuilt


def _register(cls, typeid, callable=None, proxytype=None, exposed=None, method_to_typeid=None,
              create_method=True):
    """Notes a type for a manager; making the manager raises an error."""


BaseManager = _unbuilt.unbuilt_class('BaseManager', __name__)
BaseManager.register = classmethod(_register)
SyncManager = _unbuilt.unbuilt_class('SyncManager', __name__, (BaseManager,))
SharedMemoryManager = _unbuilt.unbuilt_class('SharedMemoryManager', __name__, (BaseManager,))
BaseProxy = _unbuilt.unbuilt_class('BaseProxy', __name__)
Namespace = _unbuilt.unbuilt_class('Namespace', __name__)
Token = _unbuilt.unbuilt_class('Token', __name__)
Server = _unbuilt.unbuilt_class('Server', __name__)


class RemoteError(Exception):
    """What a manager's process raised and can't be raised here itself."""

    def __str__(self):
        return '\n' + '-' * 75 + '\n' + str(self.args[0]) + '-' * 75


for _name in ('Acquirer', 'Array', 'Barrier', 'Condition', 'Dict', 'Event', 'Iterator', 'List', 'Namespace', 'Pool',
              'Value'):
    globals()[_name + 'Proxy'] = _unbuilt.unbuilt_class(_name + 'Proxy', __name__, (BaseProxy,))
del _name

AutoProxy = _unbuilt.unbuilt_function('AutoProxy', __name__)
MakeProxyType = _unbuilt.unbuilt_function('MakeProxyType', __name__)
RebuildProxy = _unbuilt.unbuilt_function('RebuildProxy', __name__)
dispatch = _unbuilt.unbuilt_function('dispatch', __name__)
convert_to_error = _unbuilt.unbuilt_function('convert_to_error', __name__)
all_methods = _unbuilt.unbuilt_function('all_methods', __name__)
public_methods = _unbuilt.unbuilt_function('public_methods', __name__)
