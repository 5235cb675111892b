"""Values and arrays that processes share: as ctypes has them, each with its lock, and quick."""

import array
import ctypes
import gc
import multiprocessing.sharedctypes as standard
import pickle
import random
import signal
import threading
import unittest
import warnings

import helpers
import procession
from helpers import wait_until
from procession import _core, sharedctypes
from procession.sharedctypes import Array, RawArray, RawValue, Value, copy, synchronized

#: Typecodes of integers, their sizes in bits, and whether they have a sign.
INTEGERS = [(code, ctypes.sizeof(sharedctypes.typecode_to_type[code]) * 8, code.islower()) for code in 'bBhHiIlLqQ']


class Point(ctypes.Structure):
    _fields_ = [('x', ctypes.c_int), ('y', ctypes.c_double)]


class Meters(ctypes.c_int):
    """A type of the program's own."""


def outcome(function, *args):
    """What a call gives, or its exception."""
    try:
        return function(*args)
    except Exception as error:
        return type(error), str(error)


def change(value, point, numbers, text):
    value.value += 1
    with point.get_lock():
        point.x, point.y = point.x + 1, 0.5
    numbers[1:3] = [20, 30]
    text.value = b'changed'


def change_raw(value, point, numbers):
    value.value += 1
    point.x += 1
    numbers[0] = -1


def count_up(value, times):
    for _ in range(times):
        with value.get_lock():
            value.value += 1


def hold_and_die(value, told):
    value.get_lock().acquire()
    value.value = 5
    told.put('held')
    signal.pause()


def set_from_queue(queue):
    value, numbers = queue.get()
    value.value = 8
    numbers[:] = [4, 5, 6]


def gaps(numbers):
    """Whether two neighbours that are always written together ever differ."""
    return sum(one != other for one, other in (numbers[:] for _ in range(300)))


def write_pairs(numbers, told):
    told.put('writing')
    number = 0
    while True:
        number += 1
        numbers[:] = [number, number]


class Between:
    """With each start method."""

    def test_a_child_changes_them(self):
        value, point = Value('i', 1, ctx=self.context), Value(Point, 1, 2.5, ctx=self.context)
        numbers, text = Array('d', [1, 2, 3], ctx=self.context), Array('c', 20, ctx=self.context)
        self.ask(change, value, point, numbers, text)
        self.assertEqual((value.value, point.x, point.y, numbers[:], text.value),
                         (2, 2, 0.5, [1.0, 20.0, 30.0], b'changed'))

    def test_a_child_changes_raw_ones(self):
        value, point, numbers = RawValue('h', 1), RawValue(Point, 1), RawArray('i', 3)
        self.ask(change_raw, value, point, numbers)
        self.assertEqual((value.value, point.x, list(numbers)), (2, 2, [-1, 0, 0]))

    def test_no_increment_is_lost(self):
        value = self.context.Value('i', 0)
        children = [self.start(count_up, value, 500) for _ in range(3)]
        count_up(value, 500)
        for child in children:
            child.join()
        self.assertEqual(value.value, 2000)

    def test_a_slice_is_read_and_written_whole(self):
        numbers, told = self.context.Array('q', 2), self.context.Queue()
        self.start(write_pairs, numbers, told)
        told.get()
        self.assertEqual(gaps(numbers), 0)

    def test_they_go_through_a_queue_and_live_on(self):
        queue = self.context.Queue()
        value, numbers = self.context.Value('i', 1), RawArray('i', 3)
        queue.put((value, numbers))
        self.ask(set_from_queue, queue)
        self.assertEqual((value.value, list(numbers)), (8, [4, 5, 6]))
        # Nobody holds them but the message.
        queue.put((self.context.Value('i', 1), RawArray('i', 3)))
        gc.collect()
        self.ask(set_from_queue, queue)

    def test_a_dead_holder_leaves_the_value_to_the_next(self):
        value, told = self.context.Value('i', 1), self.context.Queue()
        child = self.start(hold_and_die, value, told)
        told.get()
        child.kill()
        child.join()
        with self.assertWarnsRegex(RuntimeWarning, 'died holding it'):
            self.assertEqual(value.value, 5)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            value.value += 1
        self.assertEqual(value.value, 6)

    def test_they_go_with_their_last_holder(self):
        before = _core.census()
        held = [self.context.Value('i', 1), self.context.Array('d', 1000), RawValue(Point)]
        self.ask(len, held)
        del held
        gc.collect()
        wait_until(lambda: _core.census()['processes'] <= before['processes'])
        after = _core.census()
        self.assertEqual((after['objects'], after['linked_bytes']), (before['objects'], before['linked_bytes']))


class ForkBetweenTest(Between, helpers.Case):
    method = 'fork'


class SpawnBetweenTest(Between, helpers.Case):
    method = 'spawn'


class ForkServerBetweenTest(Between, helpers.Case):
    method = 'forkserver'


class LikeTheStandardsTest(helpers.Case):
    """The same calls give the same values and the same errors."""

    def same(self, what, function, ours, theirs):
        self.assertEqual(outcome(function, ours), outcome(function, theirs), what)

    def test_values_of_all_types(self):
        candidates = [0, 1, -1, 2**7, 2**31, -2**31 - 1, 2**63, 2**64 + 5, True, 1.5, -0.0, 1e300, float('inf'),
                      b'x', b'xy', 'x', 'xy', None, [1]]
        for code in [*sharedctypes.typecode_to_type, ctypes.c_bool, ctypes.c_longdouble, Meters]:
            for first in candidates:
                ours, theirs = outcome(Value, code, first), outcome(standard.Value, code, first)
                if isinstance(theirs, tuple):
                    self.assertEqual(ours, theirs, (code, first))
                    continue
                self.same((code, first), lambda it: it.value, ours, theirs)
                self.same((code, first), lambda it: type(it.value), ours, theirs)
                self.same((code, first), lambda it: type(it.get_obj()), ours, theirs)
                for value in candidates:
                    def store(it):
                        it.value = value
                    self.same((code, first, value), store, ours, theirs)
                    self.same((code, first, value), lambda it: it.value, ours, theirs)
        self.assertEqual(outcome(Value, 'i', 1, 2), outcome(standard.Value, 'i', 1, 2))
        self.assertEqual(outcome(Value, 'z'), outcome(standard.Value, 'z'))

    def test_arrays_of_all_types(self):
        keys = [0, 3, -1, -4, 4, -5, 2**70, True, None, 'a', 1.0, slice(None), slice(1, 3), slice(-2, None), slice(3, 1),
                slice(None, None, 2), slice(None, None, -1), slice(10, 20), slice(0, 2, 0)]
        values = [5, -300, 2**40, 1.25, b'a', b'abc', 'u', None, [1, 2], [1.5, 2], [1, 2, 3, 4], (7, 8, 9, 10),
                  array.array('i', [3, 4]), range(2), [b'a', b'b'], [1, None], []]
        for code in [*sharedctypes.typecode_to_type, ctypes.c_bool]:
            make = [97, 98, 99, 0] if code != 'u' else list('abc\0')
            ours, theirs = Array(code, make), standard.Array(code, make)
            for key in keys:
                self.same((code, key), lambda it: it[key], ours, theirs)
                for value in values:
                    def store(it):
                        it[key] = value
                    self.same((code, key, value), store, ours, theirs)
                    self.same((code, key, value), lambda it: it[:], ours, theirs)
            self.same(code, list, ours, theirs)
            self.same(code, len, ours, theirs)

    def test_making_arrays(self):
        for arguments in [('i', 3), ('i', 0), ('i', []), ('d', (1, 2.5)), ('i', range(5)), ('c', b'text'), ('c', 4),
                          ('u', 'text'), ('i', -1), ('i', 1.5), ('i', None), ('i', [1, 'x']), ('f', [1e300, 0.1]),
                          ('B', [256, -1]), ('d', [2**60 + 1]), ('i', [2**31, True]), (ctypes.c_bool, [True, 0, 5]),
                          (Point, 2), (Point, [(1, 2.0)]), (ctypes.POINTER(ctypes.c_int), 2)]:
            ours, theirs = outcome(Array, *arguments), outcome(standard.Array, *arguments)
            if isinstance(theirs, tuple):
                self.assertEqual(ours, theirs, arguments)
            else:
                self.same(arguments, len, ours, theirs)
                self.same(arguments, lambda it: bytes(it.get_obj()), ours, theirs)
                self.same(arguments, lambda it: type(it.get_obj()), ours, theirs)
                self.same(arguments, lambda it: type(it).__name__, ours, theirs)

    def test_texts(self):
        ours, theirs = Array('c', 5), standard.Array('c', 5)
        for name in ('value', 'raw'):
            for text in (b'', b'abc', b'a\0c', b'abcde', b'abcdef', bytearray(b'xy'), 'abc', None, 3):
                def store(it):
                    setattr(it, name, text)
                self.same((name, text), store, ours, theirs)
                self.same((name, text), lambda it: (it.value, it.raw, it[:]), ours, theirs)

    def test_numbers_wrap_as_those_of_c(self):
        chosen = random.Random(5)
        for code, bits, signed in INTEGERS:
            numbers = Array(code, 100)
            expected = [chosen.getrandbits(63) - 2**62 for _ in range(100)]
            numbers[:] = expected
            for place, number in enumerate(expected):
                wrapped = number % 2**bits
                wrapped -= 2**bits * (signed and wrapped >= 2**(bits - 1))
                self.assertEqual((numbers[place], numbers[place:place + 1]), (wrapped, [wrapped]))


class ObjectTest(helpers.Case):

    def test_what_is_locked_is_the_object(self):
        for value in (Value('i', 5), Value('i', 5, lock=procession.Lock()), Value(Meters, 5), Value(Point, 5)):
            with self.subTest(value):
                self.assertIs(value.get_obj(), value.get_obj())
                self.assertIs(value._obj, value.get_obj())
                self.assertIs(value._lock, value.get_lock())
                self.assertGreaterEqual(ctypes.sizeof(value.get_obj()), 4)
                self.assertIsInstance(value, sharedctypes.SynchronizedBase)
        value = Value('i', 5)
        value.get_obj().value = 6
        self.assertEqual((value.value, repr(value)), (6, '<Synchronized wrapper for c_int(6)>'))
        value.value = 7
        self.assertEqual(value.get_obj().value, 7)
        numbers = Array('i', [1, 2])
        memoryview(numbers.get_obj()).cast('B').cast('i')[1] = 9
        self.assertEqual((numbers[:], numbers.get_obj()._type_), ([1, 9], ctypes.c_int))

    def test_locks(self):
        lock = procession.Lock()
        self.assertIs(Value('i', lock=lock).get_lock(), lock)
        self.assertIsInstance(Value('i').get_lock(), type(procession.RLock()))
        self.assertIsInstance(Array('i', 1, lock=None).get_lock(), type(procession.RLock()))
        for make in (Value, Array):
            self.assertFalse(hasattr(make('i', 1, lock=False), 'get_lock'))
            with self.assertRaisesRegex(AttributeError, "'nolock' has no method 'acquire'"):
                make('i', 1, lock='nolock')

    def test_whatever_is_done_takes_the_lock(self):
        """A lock of the program's own sees each call."""
        class Counting:
            taken = freed = 0

            def acquire(self):
                self.taken += 1

            def release(self):
                self.freed += 1

            def __enter__(self):
                self.acquire()

            def __exit__(self, *args):
                self.release()

        lock = Counting()
        value, numbers, point = Value('i', 1, lock=lock), Array('i', 3, lock=lock), Value(Point, lock=lock)
        text = Array('c', 3, lock=lock)
        for number, use in enumerate((lambda: value.value, lambda: numbers[0], lambda: numbers[:], lambda: point.x,
                                      lambda: text.value, lambda: text.raw), 1):
            use()
            self.assertEqual((lock.taken, lock.freed), (number, number))
        value.value, numbers[0], numbers[:], point.x, text.value, text.raw = 1, 1, [1, 2, 3], 1, b'', b''
        self.assertEqual((lock.taken, lock.freed), (12, 12))
        with self.assertRaises(TypeError):
            value.value = 'x'
        with self.assertRaises(IndexError):
            numbers[3]
        self.assertEqual((lock.taken, lock.freed), (14, 14))
        with value, numbers:
            self.assertEqual(lock.taken, 16)
        value.acquire()
        value.release()
        self.assertEqual((lock.taken, lock.freed), (17, 17))

    def test_a_lock_that_is_held_keeps_others_out(self):
        for lock in (True, procession.Lock()):
            value, numbers = Value('i', 1, lock=lock), Array('i', 2)
            read = []
            for shared, use in ((value, lambda: read.append(value.value)), (numbers, lambda: read.append(numbers[0]))):
                with shared.get_lock():
                    thread = threading.Thread(target=use)
                    thread.start()
                    thread.join(0.1)
                    self.assertTrue(thread.is_alive())
                thread.join()
            self.assertEqual(read, [1, 0])

    def test_its_own_thread_may_use_it_while_it_is_held(self):
        value, numbers = Value('i', 1), Array('i', 2)
        with value.get_lock(), value, numbers:
            value.value += 1
            numbers[0] = value.value
        self.assertEqual((value.value, numbers[:]), (2, [2, 0]))
        with self.assertRaises(AssertionError):
            value.get_lock().release()

    def test_iteration_and_sequences(self):
        numbers = Array('i', range(5))
        self.assertEqual((list(numbers), sum(numbers), list(reversed(numbers)), 3 in numbers, len(numbers)),
                         ([0, 1, 2, 3, 4], 10, [4, 3, 2, 1, 0], True, 5))
        with self.assertRaises(TypeError):
            del numbers[0]
        with self.assertRaises(TypeError):
            del Value('i').value

    def test_structures(self):
        point = Value(Point, 3, 4.5)
        point.x += 1
        self.assertEqual((point.x, point.y, type(point).__name__), (4, 4.5, 'SynchronizedPoint'))
        self.assertIs(type(Value(Point)), type(point))
        points = Array(Point, [(1, 2.0), (3, 4.0)])
        points[0].x = 10
        self.assertEqual([(one.x, one.y) for one in points], [(10, 2.0), (3, 4.0)])

    def test_copies(self):
        point = Point(1, 2.5)
        copied = copy(point)
        point.x = 9
        self.assertEqual((copied.x, copied.y), (1, 2.5))
        self.assertEqual(list(copy(RawArray('i', [1, 2]))), [1, 2])

    def test_synchronized(self):
        raw = RawArray('i', [1, 2])
        numbers = synchronized(raw)
        numbers[0] = 5
        self.assertEqual((raw[0], numbers.get_obj() is raw), (5, True))
        self.assertEqual(type(synchronized(RawArray('c', 2))).__name__, 'SynchronizedString')
        with self.assertRaisesRegex(AssertionError, 'already synchronized'):
            synchronized(numbers)
        value = sharedctypes.Synchronized(RawValue('i', 4), None, procession.get_context('spawn'))
        self.assertEqual(value.value, 4)

    def test_pickles(self):
        made = [Value('i', 1), Array('d', [1, 2]), Array('c', b'ab'), Value(Point, 1, 2.0), synchronized(RawArray('i', 3)),
                Value(ctypes.c_char, b'x')]
        again = pickle.loads(procession.reducer.ForkingPickler.dumps(made))
        for one, other in zip(made, again):
            self.assertIs(type(one), type(other))
            self.assertEqual(bytes(one.get_obj()), bytes(other.get_obj()))
            memoryview(other.get_obj()).cast('B')[0] = 65
            self.assertEqual(bytes(one.get_obj()), bytes(other.get_obj()))

    def test_an_object_of_the_programs_own_goes_by_value(self):
        """Also when its type was shared before; the standard refuses it then."""
        RawValue(Point)
        point = pickle.loads(procession.reducer.ForkingPickler.dumps(Point(1, 2.0)))
        self.assertEqual((point.x, point.y), (1, 2.0))

    def test_subclasses(self):
        class Counter(sharedctypes.Synchronized):
            def up(self):
                with self:
                    self.value += 1

        counter = Counter(RawValue('i', 1))
        counter.name = 'mine'
        counter.up()
        self.assertEqual((counter.value, counter.name, repr(counter)), (2, 'mine', '<Counter wrapper for c_int(2)>'))
        unmade = Counter.__new__(Counter)
        for use in (lambda: unmade.value, lambda: unmade.get_lock(), lambda: repr(unmade)):
            with self.assertRaises(RuntimeError):
                use()

    def test_fresh_memory_is_zero(self):
        for _ in range(3):
            numbers = Array('i', 1000)
            self.assertEqual(numbers[:], [0] * 1000)
            numbers[:] = [7] * 1000
            del numbers

    def test_a_slice_is_always_a_list_of_its_own(self):
        numbers = Array('i', range(1000, 1010))
        for _ in range(4):
            seen = numbers[:]
            self.assertEqual(seen, list(range(1000, 1010)))
            seen[0] = 'spoilt'
            seen.append(1)
        numbers[5] = -7
        for _ in range(3):
            self.assertEqual((numbers[:][5], numbers[5:7], numbers[2:3]), (-7, [-7, 1006], [1002]))
        numbers.get_obj()[6] = 3
        self.assertEqual(numbers[5:7], [-7, 3])

    def test_too_large(self):
        with self.assertRaises(MemoryError):
            Array('d', 1 << 50)

    def test_interruptible(self):
        """A signal handler runs while somebody waits for the lock, and may end the wait."""
        value = Value('i', 1)
        taken, done = threading.Event(), threading.Event()

        def hold():
            with value.get_lock():
                taken.set()
                done.wait()

        class Stop(Exception):
            pass

        def handler(number, frame):
            raise Stop

        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait()
        before = signal.signal(signal.SIGALRM, handler)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with self.assertRaises(Stop):
            value.value
        done.set()
        thread.join()
        self.assertEqual(value.value, 1)


if __name__ == '__main__':
    unittest.main()
