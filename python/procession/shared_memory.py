"""Blocks of memory that have a name. See the standard library's `multiprocessing.shared_memory`.

Better than there: the memory is had when a block is made, so that a full `/dev/shm` is a `MemoryError` and not a signal
later; and what could not be attached to is left as it was.
"""

__all__ = ['SharedMemory', 'ShareableList']

import mmap
import os
import secrets
import struct
import types
from functools import partial

import _posixshmem

from . import resource_tracker

_USE_POSIX = True
_O_CREX = os.O_CREAT | os.O_EXCL
# Some systems allow no longer names.
_SHM_SAFE_NAME_LENGTH = 14
_SHM_NAME_PREFIX = '/psm_'


def _make_filename():
    """A fresh name."""
    random_bytes = (_SHM_SAFE_NAME_LENGTH - len(_SHM_NAME_PREFIX)) // 2
    assert random_bytes >= 2, '_SHM_NAME_PREFIX too long'
    return _SHM_NAME_PREFIX + secrets.token_hex(random_bytes)


class SharedMemory:
    """A block of memory that processes find by its name: made, or attached to if there is one.

    It lives until somebody calls `unlink()`, or until the programs that track it have ended."""

    _name = _mmap = _buf = None
    _fd = -1
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _track = True

    def __init__(self, name=None, create=False, size=0, *, track=True):
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create:
            self._flags = _O_CREX | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        self._track = track
        self._open(name)
        try:
            if create:
                self._allocate(size)
            self._size = os.fstat(self._fd).st_size
            self._mmap = mmap.mmap(self._fd, self._size)
            if track:
                resource_tracker.register(self._name, 'shared_memory')
        except BaseException:
            if create:
                _posixshmem.shm_unlink(self._name)
            raise
        self._buf = memoryview(self._mmap)

    def _open(self, name):
        while self._name is None:
            path = _make_filename() if name is None else '/' * self._prepend_leading_slash + name
            if '\0' in path:
                raise ValueError('embedded null character')
            try:
                self._fd = _posixshmem.shm_open(path, self._flags, mode=self._mode)
                self._name = path
            except FileExistsError:
                if name is not None:
                    raise

    def _allocate(self, size):
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            raise MemoryError(f'no {size} bytes of shared memory: {error.strerror}') from None

    def __del__(self):
        try:
            self.close()
        except OSError:
            pass

    def __reduce__(self):
        return type(self), (self.name, False, self.size)

    def __repr__(self):
        return f'{type(self).__name__}({self.name!r}, size={self.size})'

    @property
    def buf(self):
        """A memoryview of the block; None once it is closed."""
        return self._buf

    @property
    def name(self):
        """The block's name, for another process to attach by."""
        return self._name.removeprefix('/') if self._prepend_leading_slash else self._name

    @property
    def size(self):
        """Bytes of the block."""
        return self._size

    def close(self):
        """Ends this object's access; the block lives on."""
        if self._buf is not None:
            self._buf.release()
        if self._mmap is not None:
            self._mmap.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._buf = self._mmap = None
        self._fd = -1

    def unlink(self):
        """Takes the name away; the memory goes with the last who has it open. Once for all processes."""
        if self._name:
            _posixshmem.shm_unlink(self._name)
            if self._track:
                resource_tracker.unregister(self._name, 'shared_memory')


class ShareableList:
    """A list of fixed length in a named block, of int, float, bool, str, bytes and None.

    A text or bytes can be replaced by what fits into its place; zeros at its end are lost.
    """

    # The block: 8 bytes, how many items (N); N + 1 offsets of 8 bytes, into the data, the last one its end; the data;
    # N formats of the module struct, 8 bytes each; N codes of one byte, by which a value gets its type back.
    _types_mapping = {int: 'q', float: 'd', bool: 'xxxxxxx?', str: '%ds', bytes: '%ds', type(None): 'xxxxxx?x'}
    _alignment = 8
    _back_transforms_mapping = {
        0: lambda value: value,
        1: lambda value: value.rstrip(b'\0').decode(),
        2: lambda value: value.rstrip(b'\0'),
        3: lambda value: None,
    }

    def __init__(self, sequence=None, *, name=None):
        if sequence is None and name is not None:
            self.shm = SharedMemory(name)
            self._list_len = len(self)
            self._allocated_offsets = list(self._unpack('q' * (self._list_len + 1), 8))
            self._find_places()
            return
        items = list(sequence or ())
        formats = list(map(self._format_of, items))
        assert all(len(fmt) <= 8 for fmt in formats)
        self._list_len = len(items)
        self._allocated_offsets = [0]
        for fmt in formats:
            room = int(fmt[:-1]) if fmt[-1] == 's' else self._alignment
            self._allocated_offsets.append(self._allocated_offsets[-1] + room)
        self._find_places()
        self.shm = SharedMemory(name, create=True, size=self._offset_back_transform_codes + self._list_len)
        self._pack('q' * (self._list_len + 2), 0, self._list_len, *self._allocated_offsets)
        for position, (fmt, item) in enumerate(zip(formats, items)):
            self._store(position, fmt, item)

    def _find_places(self):
        self._offset_data_start = (self._list_len + 2) * 8
        self._offset_packing_formats = self._offset_data_start + self._allocated_offsets[-1]
        self._offset_back_transform_codes = self._offset_packing_formats + self._list_len * 8

    @staticmethod
    def _encoded(value):
        return value.encode() if isinstance(value, str) else value

    def _format_of(self, item):
        if isinstance(item, (str, bytes)):
            # The standard counts characters, and cuts off what that is too short for.
            words = max(len(item) // self._alignment + 1, -(-len(self._encoded(item)) // self._alignment))
            return '%ds' % (words * self._alignment)
        return self._types_mapping[type(item)]

    def _pack(self, fmt, offset, *values):
        struct.pack_into(fmt, self.shm.buf, offset, *values)

    def _unpack(self, fmt, offset):
        return struct.unpack_from(fmt, self.shm.buf, offset)

    def _store(self, position, fmt, value):
        code = next((code for code, kind in enumerate((str, bytes, type(None)), 1) if isinstance(value, kind)), 0)
        self._pack('8s', self._offset_packing_formats + position * 8, fmt.encode())
        self._pack('b', self._offset_back_transform_codes + position, code)
        self._pack(fmt, self._offset_data_start + self._allocated_offsets[position], self._encoded(value))

    def _position(self, position, error='Requested position out of range.'):
        position = position if position >= 0 else position + self._list_len
        if not 0 <= position < self._list_len:
            raise IndexError(error)
        return position

    def _get_packing_format(self, position):
        position = self._position(position)
        return self._unpack('8s', self._offset_packing_formats + position * 8)[0].rstrip(b'\0').decode()

    def __getitem__(self, position):
        position = self._position(position, 'index out of range')
        offset = self._offset_data_start + self._allocated_offsets[position]
        value, = self._unpack(self._get_packing_format(position), offset)
        code, = self._unpack('b', self._offset_back_transform_codes + position)
        return self._back_transforms_mapping[code](value)

    def __setitem__(self, position, value):
        position = self._position(position, 'assignment index out of range')
        begin, end = self._allocated_offsets[position:position + 2]
        if not isinstance(value, (str, bytes)):
            self._store(position, self._types_mapping[type(value)], value)
        elif len(self._encoded(value)) > end - begin:
            raise ValueError('bytes/str item exceeds available storage')
        else:
            self._store(position, '%ds' % (end - begin), value)

    def __reduce__(self):
        return partial(type(self), name=self.shm.name), ()

    def __len__(self):
        return self._unpack('q', 0)[0]

    def __repr__(self):
        return f'{type(self).__name__}({list(self)}, name={self.shm.name!r})'

    @property
    def format(self):
        """The formats of all items, as they are now."""
        return ''.join(map(self._get_packing_format, range(self._list_len)))

    def count(self, value):
        """How many items equal the value."""
        return sum(value == item for item in self)

    def index(self, value):
        """The first position of the value; ValueError if there is none."""
        for position, item in enumerate(self):
            if value == item:
                return position
        raise ValueError(f'{value!r} not in this container')

    __class_getitem__ = classmethod(types.GenericAlias)
