"""Buffers beside a pickle (PEP 574), and long bytes inside one: they arrive as they were, of the types they would have inside."""

import array
import pickle
import unittest

import helpers
import procession

LONG = 1 << 18
SHORT = 100


class Raw:
    """What says that its bytes may lie beside its pickle, as numpy's arrays do."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        inside = bytes if isinstance(self.data, bytes) else bytearray
        return Raw, (pickle.PickleBuffer(self.data) if protocol >= 5 else inside(self.data),)


class Pair:
    """Two that have the same bytes."""

    def __init__(self, one, other):
        self.one = one
        self.other = other


def doubled(raw):
    """Changes what it got: nobody else may see that."""
    raw.data[:] = bytes(2 * byte % 256 for byte in raw.data)
    return raw


def answer(requests, replies):
    while (raw := requests.get()) is not None:
        replies.put(doubled(raw))


class BuffersCase(helpers.Case):
    def through(self, obj):
        queue = procession.Queue()
        queue.put(obj)
        return queue.get()


class Beside(BuffersCase):
    def test_types_are_those_of_a_buffer_inside(self):
        for length in 0, SHORT, LONG:
            for data in bytes(length), bytearray(length), memoryview(bytes(length)), array.array('i', [7] * length):
                raw = Raw(data)
                inside = pickle.loads(pickle.dumps(raw, 5))
                with self.subTest(length=length, type=type(data).__name__):
                    got = self.through(raw)
                    self.assertIs(type(got.data), type(inside.data))
                    self.assertEqual(got.data, inside.data)

    def test_many_in_order(self):
        raws = [Raw(bytes([i]) * (LONG if i % 3 else SHORT)) for i in range(50)]
        got = self.through((raws, 'end'))
        self.assertEqual(got[1], 'end')
        self.assertEqual([raw.data for raw in got[0]], [raw.data for raw in raws])

    def test_one_object_stays_one(self):
        raw = Raw(bytearray(LONG))
        got = self.through(Pair(raw, raw))
        self.assertIs(got.one, got.other)

    def test_it_is_copied_when_it_is_put(self):
        queue, raw = procession.Queue(), Raw(bytearray(LONG))
        queue.put(raw)
        raw.data[0] = 1
        self.assertEqual(queue.get().data, bytes(LONG))
        # Nobody holds the buffer any more.
        raw.data.append(1)

    def test_what_is_not_in_one_piece(self):
        flags = {'order': [], 'errors': []}

        class Queue(procession.queues.Queue):
            def _on_queue_feeder_error(self, error, obj):
                flags['errors'].append(error)

        queue = Queue(ctx=procession.get_context())
        queue.put(Raw(memoryview(bytes(2 * LONG))[::2]))
        self.assertEqual([type(error) for error in flags['errors']], [pickle.PicklingError])
        # The Pickler that failed has left nothing behind.
        queue.put(Raw(bytes(LONG)))
        self.assertEqual(queue.get().data, bytes(LONG))

    def test_of_two_dimensions(self):
        view = memoryview(bytes(range(256)) * (LONG // 256)).cast('B', (256, LONG // 256))
        self.assertEqual(bytes(self.through(Raw(view)).data), bytes(view))

    def test_with_something_that_is_shared(self):
        lock = procession.Lock()
        got = self.through(Pair(Raw(bytearray(LONG)), lock))
        lock.acquire()
        self.assertFalse(got.other.acquire(block=False))
        self.assertEqual(got.one.data, bytes(LONG))

    def test_readers_bytes(self):
        # Whoever asks for a pickle gets one that anybody can read.
        queue = procession.Queue()
        queue.put(Raw(bytes(LONG)))
        self.assertEqual(pickle.loads(queue._reader.recv_bytes()).data, bytes(LONG))

    def test_through_a_pipe(self):
        receiver, sender = procession.Pipe(False)
        child = procession.get_context('fork').Process(target=sender.send, args=(Raw(bytearray(LONG)),))
        child.start()
        self.assertEqual(receiver.recv().data, bytes(LONG))
        child.join()

    def test_nothing_is_left(self):
        def held():
            census = procession._core.census()
            return [census[name] for name in ('objects', 'owned_bytes', 'linked_bytes')]

        before = held()
        for _ in range(20):
            self.through(Pair(Raw(bytearray(LONG)), [bytes(LONG)]))
        self.assertEqual(held(), before)


class Inside(BuffersCase):
    def test_long_ones_in_others(self):
        for long in bytes(LONG), bytearray(LONG), 'é' * LONG, 'a' * LONG, 1 << 8 * LONG:
            for obj in [long], (1, long, long), {'key': [long, SHORT]}, Pair([long], long):
                with self.subTest(long=type(long).__name__, obj=type(obj).__name__):
                    got = self.through(obj)
                    self.assertEqual(pickle.dumps(got), pickle.dumps(obj))

    def test_many_short_ones(self):
        obj = {i: (str(i), [i]) for i in range(50_000)}
        self.assertEqual(self.through(obj), obj)

    def test_pickles_of_all_protocols(self):
        queue, obj = procession.Queue(), ['text', b'bytes' * LONG, 1.5, Pair]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            queue._writer.send_bytes(pickle.dumps(obj, protocol))
            self.assertEqual(queue.get(), obj)

    def test_lines_without_frames(self):
        # A global by its lines, which end beyond what is read at a time.
        queue, name = procession.Queue(), b'x' * 10_000
        binary = b'B' + LONG.to_bytes(4, 'little') + bytes(LONG)
        queue._writer.send_bytes(b'\x80\x04' + binary + b'0' + b'cbuiltins\nlen\n' + b'.')
        self.assertIs(queue.get(), len)
        queue._writer.send_bytes(b'\x80\x04' + binary + b'0' + b'cbuiltins\n' + name + b'\n.')
        with self.assertRaisesRegex(AttributeError, name.decode()):
            queue.get()

    def test_cut_short(self):
        queue = procession.Queue()
        whole = pickle.dumps([bytes(LONG), bytes(LONG)])
        for length in LONG // 2, LONG + 20, len(whole) - 1:
            queue._writer.send_bytes(whole[:length])
            with self.assertRaises((EOFError, pickle.UnpicklingError)):
                queue.get()
        queue.put('next')
        self.assertEqual(queue.get(), 'next')


class Between:
    method = ''

    def setUp(self):
        super().setUp()
        self.ctx = procession.get_context(self.method)

    def test_both_ways(self):
        requests, replies = self.ctx.Queue(), self.ctx.Queue()
        child = self.ctx.Process(target=answer, args=(requests, replies))
        child.start()
        for length in SHORT, LONG:
            raw = Raw(bytearray(b'\1\2' * length))
            requests.put(raw)
            self.assertEqual(replies.get().data, b'\2\4' * length)
            self.assertEqual(raw.data, b'\1\2' * length)
        requests.put(None)
        child.join()
        self.assertEqual(child.exitcode, 0)

    def test_tasks_and_results(self):
        with self.ctx.Pool(2) as pool:
            raws = [Raw(bytearray([i]) * LONG) for i in range(10)]
            for i, raw in enumerate(pool.map(doubled, raws)):
                self.assertEqual(raw.data, bytes([2 * i]) * LONG)
            # A function that isn't known by its name goes along.
            self.assertEqual(pool.apply(Doubler(Raw(bytearray(b'\1') * LONG))).data, b'\2' * LONG)


class Doubler:
    def __init__(self, raw):
        self.raw = raw

    def __call__(self):
        return doubled(self.raw)


class WithFork(Between, BuffersCase):
    method = 'fork'


class WithSpawn(Between, BuffersCase):
    method = 'spawn'


class WithForkServer(Between, BuffersCase):
    method = 'forkserver'


if __name__ == '__main__':
    unittest.main()
