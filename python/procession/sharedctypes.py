"""Values and arrays of ctypes, as the standard library's `multiprocessing.sharedctypes`: not built yet."""

__all__ = ['RawValue', 'RawArray', 'Value', 'Array', 'copy', 'synchronized']

from . import _unbuilt

RawValue = _unbuilt.unbuilt_function('RawValue', __name__)
RawArray = _unbuilt.unbuilt_function('RawArray', __name__)
Value = _unbuilt.unbuilt_function('Value', __name__)
Array = _unbuilt.unbuilt_function('Array', __name__)
copy = _unbuilt.unbuilt_function('copy', __name__)
synchronized = _unbuilt.unbuilt_function('synchronized', __name__)
SynchronizedBase = _unbuilt.unbuilt_class('SynchronizedBase', __name__)
Synchronized = _unbuilt.unbuilt_class('Synchronized', __name__, (SynchronizedBase,))
SynchronizedArray = _unbuilt.unbuilt_class('SynchronizedArray', __name__, (SynchronizedBase,))
SynchronizedString = _unbuilt.unbuilt_class('SynchronizedString', __name__, (SynchronizedArray,))
