"""Objects that live in messages: held by a queue, a task or an answer, and gone with their last holder."""

import gc
import pickle
import threading
import unittest

import helpers
from procession import _core
from procession.reduction import ForkingPickler


def objects():
    """The objects of the tree, without what nobody can come to any more."""
    gc.collect()
    _core.reap()
    return _core.census()['objects']


def use(thing):
    """Uses a lock or what it is in."""
    lock = thing[0] if isinstance(thing, (list, tuple)) else thing
    with lock:
        pass
    return thing


def make(context, count):
    return [context.Lock() for _ in range(count)]


def fail(lock):
    raise ValueError(lock)


class Unfinished:
    """Names a lock, and then can't be pickled."""

    def __init__(self, lock):
        self.lock = lock

    def __reduce__(self):
        return tuple, ([self.lock, threading.Lock()],)


class Nested:
    """Puts a lock into a queue while it is pickled itself, and names one that nobody else holds."""

    def __init__(self, context, lock, queue):
        self.context, self.lock, self.queue = context, lock, queue

    def __reduce__(self):
        self.queue.put(self.context.Lock())
        return list, ([self.lock, self.queue, self.context.Lock()],)


class CarriedCase(helpers.Case):
    """Waits for what other processes let go of in their own time."""

    def assert_objects(self, count):
        helpers.wait_until(lambda: objects() == count)


class Queues(CarriedCase):
    method = 'fork'

    def test_a_message_holds_what_it_names(self):
        before = objects()
        queue = self.context.Queue()
        for _ in range(10):
            queue.put([self.context.Lock(), b'x' * 50_000])
        self.assertEqual(objects(), before + 11)
        for got in range(5):
            message = use(queue.get())
            self.assertEqual(objects(), before + 11 - got)
            del message
        self.assertEqual(objects(), before + 6)
        del queue
        self.assertEqual(objects(), before)

    def test_every_kind(self):
        context, before = self.context, objects()
        queue = context.Queue()
        things = [context.Lock(), context.RLock(), context.Semaphore(2), context.BoundedSemaphore(2),
                  context.Condition(), context.Event(), context.Barrier(2), context.Queue()]
        made = objects() - before
        queue.put(things)
        del things
        self.assertEqual(objects(), before + made)
        lock, rlock, semaphore, bounded, condition, event, barrier, inner = queue.get()
        for one in (lock, rlock, semaphore, bounded, condition):
            use(one)
        event.set()
        inner.put((event.is_set(), barrier.parties))
        self.assertEqual(inner.get(), (True, 2))
        self.assertEqual(objects(), before + made)
        del lock, rlock, semaphore, bounded, condition, event, barrier, inner, one, queue
        self.assertEqual(objects(), before)

    def test_queues_in_queues(self):
        before = objects()
        outer, inner = self.context.Queue(), self.context.Queue()
        inner.put(self.context.Lock())
        inner.put(inner)
        outer.put(inner)
        del inner
        self.assertEqual(objects(), before + 3)
        inner = outer.get()
        del outer
        self.assertEqual(objects(), before + 2)
        use(inner.get())
        self.assertEqual(objects(), before + 1)
        # It is in itself still.
        del inner
        self.assertEqual(objects(), before)

    def test_pickles_that_fail_and_pickles_in_pickles(self):
        before = objects()
        queue, other = self.context.Queue(), self.context.Queue()
        failed = []

        class Heard(type(queue)):
            def _on_queue_feeder_error(self, error, item):
                failed.append(type(error))
        heard = Heard(ctx=self.context)
        heard.put(Unfinished(self.context.Lock()))
        self.assertEqual(failed, [TypeError])
        self.assertEqual(objects(), before + 3)
        queue.put(Nested(self.context, self.context.Lock(), other))
        self.assertEqual(objects(), before + 6)
        lock, same, made = queue.get()
        for one in (lock, made, same.get()):
            use(one)
        del lock, same, made, one, queue, other, heard
        self.assertEqual(objects(), before)

    def test_what_goes_elsewhere_lives_on(self):
        before = objects()
        for number, dumps in enumerate((pickle.dumps, ForkingPickler.dumps)):
            text = dumps(self.context.Lock())
            self.assertEqual(objects(), before + number + 1)
            use(pickle.loads(text))
            self.assertEqual(objects(), before + number + 1)


    def test_pipes(self):
        reader, writer = self.context.Pipe(False)
        before = objects()
        for number in range(3):
            writer.send({number: [self.context.Lock(), self.context.Queue(), self.context.Array('i', 3)]})
        waiting = objects()
        self.assertGreater(waiting, before + 9)
        for number in range(3):
            lock, queue, array = reader.recv()[number]
            queue.put(use(lock))
            use(queue.get())
            self.assertEqual(array[:], [0, 0, 0])
        del lock, queue, array
        self.assertEqual(objects(), before)
        reader.close()
        self.assertRaises(OSError, writer.send, self.context.Lock())
        self.assertEqual(objects(), before)

    def test_a_message_is_taken_out_of_a_pipe_once(self):
        reader, writer = self.context.Pipe(False)
        before = objects()
        writer.send(self.context.Lock())
        text = reader.recv_bytes()
        use(pickle.loads(text))
        self.assertRaisesRegex(ValueError, 'unpickled before', pickle.loads, text)
        self.assertEqual(objects(), before)


class Processes(CarriedCase):
    """Arguments, messages, tasks and answers, there and back."""

    def test_a_child_is_given_locks_and_gives_some(self):
        before = objects()
        there, back = self.context.Queue(), self.context.Queue()
        there.put(make(self.context, 3))
        there.put(make(self.context, 3))
        child = self.start(pass_on, there, back, self.context.Lock())
        for lock in back.get():
            use(lock)
        child.join()
        self.assertEqual(child.exitcode, 0)
        child.close()
        del lock
        # Three wait still.
        self.assert_objects(before + 2 + 3)
        del there, back, child
        self.assert_objects(before)

    def test_a_child_passes_things_through_pipes(self):
        ours, theirs = self.context.Pipe()
        before = objects()
        child = self.start(echo, theirs)
        theirs.close()
        for _ in range(5):
            ours.send(make(self.context, 2))
            for lock in ours.recv():
                use(lock)
        ours.send(None)
        child.join()
        self.assertEqual(child.exitcode, 0)
        child.close()
        del lock, child
        self.assert_objects(before)

    def test_pools(self):
        before = objects()
        with self.context.Pool(2) as pool:
            self.assertEqual(pool.map(len, ['a'] * 20), [1] * 20)
            ready = objects()
            locks = make(self.context, 20)
            returned = pool.map(use, locks)
            del locks
            self.assert_objects(ready + 20)
            returned += list(pool.imap_unordered(use, returned[:3]))
            returned += pool.apply(use, (make(self.context, 2),))
            self.assert_objects(ready + 22)
            for lock in returned:
                use(lock)
            del returned, lock
            self.assert_objects(ready)
            with self.assertRaises(ValueError) as caught:
                pool.apply(fail, (self.context.Lock(),))
            self.assert_objects(ready + 1)
            use(caught.exception.args[0])
            del caught
            self.assert_objects(ready)
            unheard = pool.apply_async(use, (self.context.Lock(),))
        del unheard, pool
        self.assert_objects(before)


def echo(connection):
    while locks := connection.recv():
        connection.send([use(one) for one in locks])


def pass_on(there, back, lock):
    with lock:
        back.put([use(one) for one in there.get()])


class Fork(Processes):
    method = 'fork'


class Spawn(Processes):
    method = 'spawn'


class ForkServer(Processes):
    method = 'forkserver'


del Processes, CarriedCase


if __name__ == '__main__':
    unittest.main()
