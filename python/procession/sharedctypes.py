"""Values and arrays that processes share. See the standard library's `multiprocessing.sharedctypes`.

`Synchronized` and its like are compiled: C's numbers are read and written there, lock included. The object of ctypes
over the same bytes is made when it is asked for. Any of them can be sent anywhere in the tree.
"""

__all__ = ['RawValue', 'RawArray', 'Value', 'Array', 'copy', 'synchronized']

import ctypes
import weakref

from . import _core, context
from .reduction import ForkingPickler

typecode_to_type = {
    'c': ctypes.c_char, 'u': ctypes.c_wchar, 'b': ctypes.c_byte, 'B': ctypes.c_ubyte, 'h': ctypes.c_short,
    'H': ctypes.c_ushort, 'i': ctypes.c_int, 'I': ctypes.c_uint, 'l': ctypes.c_long, 'L': ctypes.c_ulong,
    'q': ctypes.c_longlong, 'Q': ctypes.c_ulonglong, 'f': ctypes.c_float, 'd': ctypes.c_double,
}

#: What the compiled classes know, by the letters of the module `struct`.
_LETTERS = {
    ctypes.c_int8: 'b', ctypes.c_uint8: 'B', ctypes.c_int16: 'h', ctypes.c_uint16: 'H', ctypes.c_int32: 'i',
    ctypes.c_uint32: 'I', ctypes.c_int64: 'q', ctypes.c_uint64: 'Q', ctypes.c_float: 'f', ctypes.c_double: 'd',
    ctypes.c_bool: '?',
}
_ARRAY_LETTERS = {**_LETTERS, ctypes.c_char: 'c'}

SynchronizedBase = _core.SynchronizedBase
Synchronized = _core.Synchronized
SynchronizedArray = _core.SynchronizedArray
SynchronizedString = _core.SynchronizedString


def RawValue(typecode_or_type, *args):
    """An object of ctypes in shared memory."""
    obj = _new_value(typecode_to_type.get(typecode_or_type, typecode_or_type))
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type, size_or_initializer):
    """An array of ctypes in shared memory."""
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_value(type_ * size_or_initializer)
    obj = _new_value(type_ * len(size_or_initializer))
    obj.__init__(*size_or_initializer)
    return obj


def copy(obj):
    """A copy of an object of ctypes, in shared memory."""
    new_obj = _new_value(type(obj))
    ctypes.pointer(new_obj)[0] = obj
    return new_obj


def _new_value(type_):
    return rebuild_ctype(type_, _core.Memory(ctypes.sizeof(type_)), None)


def rebuild_ctype(type_, wrapper, length):
    """The object, or the array of that length, over shared memory."""
    if length is not None:
        type_ = type_ * length
    ForkingPickler.register(type_, reduce_ctype)
    obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


def reduce_ctype(obj):
    """Shared memory goes by its name; an object of the program's own by value, as `pickle` has it."""
    if not hasattr(obj, '_wrapper'):
        return obj.__reduce__()
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, obj._wrapper, obj._length_)
    return rebuild_ctype, (type(obj), obj._wrapper, None)


def Value(typecode_or_type, *args, lock=True, ctx=None):
    """A value with its lock; the bare object of ctypes if lock is False."""
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    letter = _LETTERS.get(type_)
    if lock is False or letter is None or len(args) > 1:
        return _with_lock(RawValue(type_, *args), lock, ctx)
    memory = _core.Memory(ctypes.sizeof(type_))
    if not _core.store(memory, letter, args):
        rebuild_ctype(type_, memory, None).__init__(*args)
    return _core.open_shared(Synchronized, memory, letter, type_, None, _lock_for(lock, ctx))


def Array(typecode_or_type, size_or_initializer, *, lock=True, ctx=None):
    """An array with its lock; the bare array of ctypes if lock is False."""
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    letter = _ARRAY_LETTERS.get(type_)
    is_size = isinstance(size_or_initializer, int)
    if lock is False or letter is None or is_size and size_or_initializer < 0:
        return _with_lock(RawArray(type_, size_or_initializer), lock, ctx)
    count = size_or_initializer if is_size else len(size_or_initializer)
    values = () if is_size else list(size_or_initializer)
    memory = _core.Memory(ctypes.sizeof(type_) * count)
    if not _core.store(memory, letter, values):
        rebuild_ctype(type_, memory, count).__init__(*values)
    class_ = SynchronizedString if letter == 'c' else SynchronizedArray
    return _core.open_shared(class_, memory, letter, type_, count, _lock_for(lock, ctx))


def _with_lock(obj, lock, ctx):
    return obj if lock is False else synchronized(obj, _lock_for(lock, ctx), ctx=ctx)


def _lock_for(lock, ctx):
    if lock in (True, None):
        return (ctx or context._default_context.get_context()).RLock()
    if not hasattr(lock, 'acquire'):
        raise AttributeError('%r has no method %r' % (lock, 'acquire'))
    return lock


def synchronized(obj, lock=None, ctx=None):
    """An object of ctypes with a lock; a new recursive one if none is given."""
    assert not isinstance(obj, SynchronizedBase), 'object already synchronized'
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        return (SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray)(obj, lock, ctx)
    cls = type(obj)
    if cls not in class_cache:
        properties = {field[0]: make_property(field[0]) for field in cls._fields_}
        class_cache[cls] = type('Synchronized' + cls.__name__, (SynchronizedBase,), properties)
    return class_cache[cls](obj, lock, ctx)


def make_property(name):
    """A property that is the object's attribute of that name, under its lock."""
    if name not in prop_cache:
        def get(self):
            with self:
                return getattr(self._obj, name)

        def set(self, value):
            with self:
                setattr(self._obj, name, value)

        prop_cache[name] = property(get, set)
    return prop_cache[name]


prop_cache = {}
class_cache = weakref.WeakKeyDictionary()
