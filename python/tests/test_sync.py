"""Recursive locks, semaphores, conditions, events and barriers: among threads, among processes, and when one dies."""

import os
import pickle
import signal
import threading
import time
import unittest
import warnings

import helpers
import procession
from helpers import wait_until
from procession import synchronize

NAP = 0.1


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def try_acquire(lock):
    return lock.acquire(False)


def release_foreign(lock):
    try:
        lock.release()
    except AssertionError as error:
        return str(error)


def hold_twice(lock, told, reader):
    with lock:
        with lock:
            told.put('held')
            reader.recv()


def hold_and_die(lock, told):
    lock.acquire()
    told.put('held')
    time.sleep(3600)


def enter_and_die(semaphore, told):
    with semaphore:
        told.put('held')
        time.sleep(3600)


def give(semaphore, times):
    for _ in range(times):
        semaphore.release()


def wait_under(condition, told):
    with condition:
        told.put('waits')
        told.put(condition.wait(3600))


def notify(condition, count):
    with condition:
        condition.notify(count)


def set_event(event):
    event.set()


def wait_for_event(event, told):
    told.put('waits')
    told.put(event.wait())


def pass_barrier(barrier, told):
    try:
        told.put(barrier.wait(3600))
    except threading.BrokenBarrierError:
        told.put('broken')


def pass_twice(barrier, told):
    pass_barrier(barrier, told)
    pass_barrier(barrier, told)


def through_queue(queue):
    lock, semaphore, condition, event, barrier = queue.get()
    with condition:
        condition.notify()
    event.set()
    semaphore.release()
    return lock.acquire(False), barrier.wait(3600)


class Here(helpers.Case):
    """Within one process."""
    method = 'fork'

    def thread(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        return thread

    def late(self, function, *args):
        timer = threading.Timer(NAP, function, args)
        timer.start()
        self.addCleanup(timer.join)

    def test_rlock_is_its_threads(self):
        lock = self.context.RLock()
        self.assertEqual(repr(lock), '<RLock(None, 0)>')
        for depth in range(1, 4):
            self.assertIs(lock.acquire(), True)
            self.assertEqual(repr(lock), f'<RLock(MainProcess, {depth})>')
        seen = []
        self.thread(lambda: seen.extend([lock.acquire(False), repr(lock), lock._count()])).join()
        self.assertEqual(seen, [False, '<RLock(SomeOtherThread, nonzero)>', 0])
        for _ in range(3):
            lock.release()
        self.assertFalse(lock.locked())
        self.assertRaisesRegex(AssertionError, 'not owned by thread', lock.release)
        self.thread(lock.acquire).join()
        self.assertRaises(AssertionError, lock.release)
        self.assertIs(lock.acquire(True, NAP), False)

    def test_semaphore(self):
        semaphore = self.context.Semaphore(2)
        self.assertEqual(repr(semaphore), '<Semaphore(value=2)>')
        self.assertEqual([semaphore.acquire(False) for _ in range(3)], [True, True, False])
        self.assertTrue(semaphore.locked())
        begun = time.monotonic()
        self.assertIs(semaphore.acquire(timeout=NAP), False)
        self.assertGreaterEqual(time.monotonic() - begun, NAP)
        self.late(semaphore.release)
        self.assertIs(semaphore.acquire(), True)
        for value in (1, 2, 3):
            semaphore.release()
            self.assertEqual(semaphore.get_value(), value)
        with semaphore as entered:
            self.assertIs(entered, True)
            self.assertEqual(semaphore.get_value(), 2)
        self.assertEqual(semaphore._semlock._get_value(), 3)
        for value in (-1, 2**31):
            self.assertRaisesRegex(OSError, str(value), self.context.Semaphore, value)
        self.assertRaises(TypeError, self.context.Semaphore, 'many')

    def test_bounded_semaphore(self):
        semaphore = self.context.BoundedSemaphore(2)
        self.assertIsInstance(semaphore, synchronize.Semaphore)
        self.assertEqual(repr(semaphore), '<BoundedSemaphore(value=2, maxvalue=2)>')
        self.assertRaisesRegex(ValueError, 'released too many times', semaphore.release)
        with semaphore, semaphore:
            self.assertFalse(semaphore.acquire(False))
        self.assertEqual(semaphore.get_value(), 2)

    def test_condition(self):
        condition = self.context.Condition()
        self.assertRaisesRegex(AssertionError, 'must acquire', condition.wait)
        self.assertRaisesRegex(AssertionError, 'not owned', condition.notify)
        with condition:
            begun = time.monotonic()
            self.assertIs(condition.wait(NAP), False)
            self.assertGreaterEqual(time.monotonic() - begun, NAP)
            condition.notify(3)
        woken = []

        def wait():
            with condition, condition:
                woken.append(condition.wait())

        threads = [self.thread(wait) for _ in range(4)]
        wait_until(lambda: condition._waiters.get_value() == 4)
        for count, expected in ((1, 1), (2, 3), (5, 4)):
            with condition:
                condition.notify(count)
            wait_until(lambda: len(woken) == expected)
        for thread in threads:
            thread.join()
        self.assertEqual(woken, [True] * 4)
        self.assertEqual(condition._sleeping_count.get_value() - condition._woken_count.get_value(), 0)
        self.assertEqual(condition._wait_semaphore.get_value(), 0)

    def test_conditions_with_other_locks(self):
        for lock in (self.context.Lock(), self.context.Semaphore(1), self.context.BoundedSemaphore(1)):
            condition = self.context.Condition(lock)
            with condition:
                self.assertIs(condition.wait(0), False)
                self.assertTrue(lock.locked())
                condition.notify_all()
            self.assertFalse(lock.locked())

    def test_wait_for(self):
        condition, values = self.context.Condition(), iter(['', 0, '', 'yes'])
        with condition:
            self.assertEqual(condition.wait_for(lambda: next(values), NAP), 0)
            self.late(notify, condition, 1)
            self.assertEqual(condition.wait_for(lambda: next(values)), 'yes')

    def test_event(self):
        event = self.context.Event()
        self.assertRegex(repr(event), r'<Event at 0x[0-9a-f]+ unset>')
        self.assertIs(event.wait(0), False)
        begun = time.monotonic()
        self.assertIs(event.wait(NAP), False)
        self.assertGreaterEqual(time.monotonic() - begun, NAP)
        self.late(event.set)
        self.assertIs(event.wait(), True)
        self.assertIs(event.is_set(), True)
        self.assertIn('set>', repr(event))
        event.clear()
        self.assertIs(event.is_set(), False)

    def test_a_pulse_wakes_all(self):
        event, woken = self.context.Event(), []
        threads = [self.thread(lambda: woken.append(event.wait())) for _ in range(3)]
        time.sleep(NAP)
        event.set()
        event.clear()
        for thread in threads:
            thread.join()
        self.assertEqual(woken, [True] * 3)

    def test_barrier(self):
        acted = []
        barrier = self.context.Barrier(3, lambda: acted.append(barrier.n_waiting), 3600)
        self.assertIsInstance(barrier, threading.Barrier)
        self.assertEqual((barrier.parties, barrier.n_waiting, barrier.broken), (3, 0, False))
        indices = []
        for round in range(1, 4):
            threads = [self.thread(lambda: indices.append(barrier.wait())) for _ in range(2)]
            indices.append(barrier.wait())
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(indices[-3:]), [0, 1, 2])
            self.assertEqual(acted, [3] * round)

    def test_a_barrier_breaks(self):
        barrier = self.context.Barrier(2, timeout=NAP)
        begun = time.monotonic()
        self.assertRaises(threading.BrokenBarrierError, barrier.wait)
        self.assertGreaterEqual(time.monotonic() - begun, NAP)
        self.assertTrue(barrier.broken)
        self.assertIn('broken', repr(barrier))
        self.assertRaises(threading.BrokenBarrierError, barrier.wait, 3600)
        barrier.reset()
        self.assertFalse(barrier.broken)
        for end in (barrier.abort, barrier.reset):
            self.late(end)
            self.assertRaises(threading.BrokenBarrierError, barrier.wait, 3600)
        barrier.reset()
        self.assertEqual(barrier.n_waiting, 0)
        self.assertRaisesRegex(ValueError, '0', self.context.Barrier, 0)

    def test_an_action_that_raises(self):
        barrier = self.context.Barrier(1, lambda: 1 / 0)
        self.assertRaises(ZeroDivisionError, barrier.wait)
        self.assertTrue(barrier.broken)

    def test_handlers_run_in_waits(self):
        condition, event, semaphore = self.context.Condition(), self.context.Event(), self.context.Semaphore(0)
        barrier, other = self.context.Barrier(2), self.context.RLock()
        self.thread(other.acquire).join()
        ran = []

        def handler(*_):
            ran.append(0)
            # Each may be used here, whatever was interrupted.
            semaphore.release()
            event.set()
            notify(condition, 1)

        self.enterContext(helpers.handling(signal.SIGUSR1, handler))

        def wait():
            with condition:
                return condition.wait(3600)

        for wait in (wait, event.wait, semaphore.acquire):
            while semaphore.acquire(False):
                pass
            self.late(os.kill, os.getpid(), signal.SIGUSR1)
            self.assertIs(wait(), True)
            event.clear()

        def fail(*_):
            raise ZeroDivisionError

        signal.signal(signal.SIGUSR1, fail)

        def wait_and_look():
            with condition:
                try:
                    condition.wait(3600)
                finally:
                    self.assertTrue(condition._lock._is_mine())

        for _ in range(3):
            semaphore.acquire(False)
        for wait in (wait_and_look, event.wait, semaphore.acquire, barrier.wait, other.acquire):
            self.late(os.kill, os.getpid(), signal.SIGUSR1)
            self.assertRaises(ZeroDivisionError, wait)
        self.assertEqual(condition._waiters.get_value(), 0)
        self.assertTrue(barrier.broken)

    def test_names_and_subclasses(self):
        for name in ('RLock', 'Semaphore', 'BoundedSemaphore', 'Event'):
            cls = getattr(synchronize, name)
            self.assertEqual((cls.__module__, cls.__qualname__), ('procession.synchronize', name))

            class Named(cls):
                def __init__(self, name, *, ctx):
                    super().__init__(ctx=ctx)
                    self.name = name

            self.assertEqual(Named('n', ctx=self.context).name, 'n')
        with self.assertRaisesRegex(RuntimeError, '__init__'):
            synchronize.RLock.__new__(synchronize.RLock).acquire()

    def test_pickles(self):
        for made in (self.context.RLock(), self.context.Semaphore(3), self.context.BoundedSemaphore(3),
                     self.context.Condition(), self.context.Event(), self.context.Barrier(2, print, 5)):
            again = pickle.loads(pickle.dumps(made))
            self.assertIs(type(again), type(made))
        self.assertEqual((again.parties, again._action, again._timeout), (2, print, 5))
        lock = self.context.RLock()
        with pickle.loads(pickle.dumps(lock)):
            self.assertTrue(lock._is_mine())


class Among:
    """Among processes, with each start method."""

    def setUp(self):
        super().setUp()
        self.told = self.context.Queue()

    def kill(self, process):
        process.kill()
        process.join()

    def test_rlock(self):
        lock = self.context.RLock()
        reader, writer = self.context.Pipe(False)
        process = self.start(hold_twice, lock, self.told, reader)
        self.told.get()
        self.assertIs(lock.acquire(False), False)
        self.assertEqual(repr(lock), '<RLock(SomeOtherProcess, nonzero)>')
        self.assertRaises(AssertionError, lock.release)
        writer.send(0)
        self.assertIs(lock.acquire(), True)
        process.join()
        self.assertIs(self.ask(try_acquire, lock), False)
        self.assertIn('not owned', self.ask(release_foreign, lock))

    def test_a_killed_holder_of_an_rlock(self):
        lock = self.context.RLock()
        process = self.start(hold_and_die, lock, self.told)
        self.told.get()
        self.kill(process)
        with self.assertWarnsRegex(RuntimeWarning, 'died'):
            self.assertIs(lock.acquire(), True)
        lock.release()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            with lock:
                pass

    def test_permits_of_a_killed_process_come_back(self):
        for target in (hold_and_die, enter_and_die):
            semaphore = self.context.BoundedSemaphore(1)
            process = self.start(target, semaphore, self.told)
            self.told.get()
            self.assertIs(semaphore.acquire(False), False)
            self.kill(process)
            self.assertIs(semaphore.acquire(), True)
            semaphore.release()

    def test_signals_are_nobodys(self):
        semaphore = self.context.Semaphore(0)
        process = self.start(give, semaphore, 3)
        for _ in range(2):
            self.assertIs(semaphore.acquire(), True)
        process.join()
        process = self.start(hold_and_die, semaphore, self.told)
        self.told.get()
        self.kill(process)
        self.assertIs(semaphore.acquire(True, NAP), False)

    def test_condition(self):
        condition = self.context.Condition()
        processes = [self.start(wait_under, condition, self.told) for _ in range(3)]
        for _ in processes:
            self.assertEqual(self.told.get(), 'waits')
        wait_until(lambda: condition._waiters.get_value() == 3)
        # Whoever is first in line dies: the notification is for a living one.
        self.kill(processes[0])
        self.start(notify, condition, 1)
        self.assertIs(self.told.get(), True)
        with condition:
            self.assertEqual(condition._waiters.get_value(), 1)
            condition.notify_all()
        self.assertIs(self.told.get(), True)

    def test_event(self):
        event = self.context.Event()
        processes = [self.start(wait_for_event, event, self.told) for _ in range(2)]
        for _ in processes:
            self.told.get()
        self.kill(processes[0])
        self.start(set_event, event)
        self.assertIs(self.told.get(), True)
        self.assertIs(event.wait(), True)

    def test_barrier(self):
        barrier = self.context.Barrier(3)
        for _ in range(2):
            self.start(pass_twice, barrier, self.told)
        for _ in range(2):
            indices = [barrier.wait(), self.told.get(), self.told.get()]
            self.assertEqual(sorted(indices), [0, 1, 2])

    def test_a_barrier_breaks_when_a_party_dies(self):
        barrier = self.context.Barrier(3)
        processes = [self.start(pass_barrier, barrier, self.told) for _ in range(2)]
        wait_until(lambda: barrier.n_waiting == 2)
        self.kill(processes[0])
        self.assertEqual(self.told.get(), 'broken')
        self.assertRaises(threading.BrokenBarrierError, barrier.wait)

    def test_through_a_queue(self):
        made = (self.context.RLock(), self.context.Semaphore(0), self.context.Condition(), self.context.Event(),
                self.context.Barrier(2))
        queue = self.context.Queue()
        reader, writer = self.context.Pipe(False)
        lock, semaphore, condition, event, barrier = made
        lock.acquire()
        with condition:
            process = self.start(helpers.answer, writer, through_queue, (queue,))
            queue.put(made)
            self.assertIs(condition.wait(), True)
        self.assertIs(semaphore.acquire(), True)
        self.assertIs(event.wait(), True)
        index = barrier.wait()
        self.assertEqual(reader.recv(), (False, 1 - index))
        process.join()


class Fork(Among, helpers.Case):
    method = 'fork'


class Spawn(Among, helpers.Case):
    method = 'spawn'


class ForkServer(Among, helpers.Case):
    method = 'forkserver'


if __name__ == '__main__':
    unittest.main()
