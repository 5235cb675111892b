"""A storm: a pool's workers and getters of a queue are killed at random; every task, item and lock is accounted for."""

import collections
import os
import pathlib
import random
import signal
import time
import unittest
import warnings

import helpers
import procession
from helpers import descriptors, wait_until

#: Tasks that are unanswered at a time.
OPEN = 16
#: Lengths of items: among others, beyond what fits into a segment.
LENGTHS = [0, 10, 500, 5000, 20_000, 200_000]


def note(path, *words):
    """Adds a line to a file, in one step."""
    with open(path, 'ab', buffering=0) as file:
        file.write((' '.join(map(str, words)) + '\n').encode())


def notes(path):
    return [line.split() for line in path.read_text().splitlines()]


def equip(*tools):
    """What each worker begins with."""
    # Who acquires a lock whose holder was killed is warned.
    warnings.simplefilter('ignore', RuntimeWarning)
    global QUEUE, LOCK, FOLDER
    QUEUE, LOCK, FOLDER = tools


def work(number):
    """A task: computes, puts or locks."""
    if number % 3 == 1:
        QUEUE.put((os.getpid(), number, bytes([number % 256]) * LENGTHS[number % len(LENGTHS)]))
    elif number % 3 == 2:
        with LOCK:
            note(FOLDER / 'locked', os.getpid(), number, 'in')
            note(FOLDER / 'locked', os.getpid(), number, 'out')
    return -number, os.getpid()


def get_and_note(queue, path):
    """Gets until there is a None."""
    while (item := queue.get()) is not None:
        pid, number, filling = item
        whole = filling == bytes([number % 256]) * LENGTHS[number % len(LENGTHS)]
        note(path, pid, number, whole)


class Storm:
    """What is done with each start method."""

    def setUp(self):
        super().setUp()
        self.seed = int(os.environ.get('SEED', random.randrange(1 << 32)))
        self.chance = random.Random(self.seed)
        # The arena, and what comes with it.
        self.context.Lock()
        self.before = descriptors()
        self.queue, self.lock = self.context.Queue(), self.context.Lock()
        self.files = self.folder()
        for name in ('locked', 'got'):
            (self.files / name).touch()

    def test_storm(self):
        with self.subTest(seed=self.seed):
            self.pool = self.context.Pool(3, equip, (self.queue, self.lock, self.files), maxtasksperchild=40)
            # Not the pool's own method, which would keep it, and so what it has of its workers.
            self.addCleanup(lambda: self.pool and self.pool.terminate())
            self.open, self.answers, self.killed_getters, number = collections.deque(), {}, 0, 0
            self.killed_workers, self.at_work = set(), set()
            self.getters = [self.getter() for _ in range(2)]
            for _ in range(self.kills):
                # Somebody gets on between two kills.
                answered = len(self.answers)
                end = time.monotonic() + self.chance.uniform(0.001, 0.02)
                while time.monotonic() < end or len(self.answers) == answered:
                    while len(self.open) < OPEN:
                        self.open.append((number, self.pool.apply_async(work, (number,))))
                        number += 1
                    self.collect()
                self.strike()
            while self.open:
                self.collect()
            self.check_all(number)

    def getter(self):
        return self.start(get_and_note, self.queue, self.files / 'got')

    def strike(self):
        """Kills a worker or a getter."""
        index = self.chance.randrange(4)
        if index < 2:
            self.getters[index].kill()
            self.getters[index].join()
            self.assertEqual(self.getters[index].exitcode, -signal.SIGKILL)
            self.getters[index].close()
            self.killed_getters += 1
            self.getters[index] = self.getter()
        else:
            workers = list(self.pool._pool)
            # Those that start are rarely killed: ten in a row, and the pool would be right to give up.
            ready = [worker for worker in workers if worker.pid in self.at_work]
            worker = self.chance.choice(ready if ready and self.chance.random() < 0.8 else workers)
            worker.kill()
            self.killed_workers.add(worker.pid)

    def collect(self):
        """Takes the answers that there are, from the oldest task on."""
        number, result = self.open[0]
        result.wait(0.005)
        if not result.ready():
            return
        self.open.popleft()
        self.assertNotIn(number, self.answers)
        try:
            self.answers[number], pid = result.get()
            self.assertEqual(self.answers[number], -number)
            self.at_work.add(pid)
        except procession.ProcessError as error:
            self.assertEqual(error.exitcode, -signal.SIGKILL)
            self.answers[number] = None

    def check_all(self, number):
        self.pool.close()
        self.pool.join()
        wait_until(self.queue.empty)
        for getter in self.getters:
            self.queue.put(None)
        for getter in self.getters:
            getter.join()
            self.assertEqual(getter.exitcode, 0)
        self.assertEqual(sorted(self.answers), list(range(number)))
        self.check_items(number)
        self.check_lock()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)
            self.assertTrue(self.lock.acquire(timeout=30))
        self.assertEqual(procession.active_children(), [])
        self.pool = self.open = None
        for getter in self.getters:
            getter.close()
        wait_until(lambda: len(descriptors()) <= len(self.before))

    def check_items(self, number):
        got = [(int(pid), int(number), whole) for pid, number, whole in notes(self.files / 'got')]
        self.assertEqual({whole for _, _, whole in got}, {'True'})
        numbers = [number for _, number, _ in got]
        self.assertEqual(len(set(numbers)), len(numbers), 'an item was got twice')
        self.assertTrue(all(number % 3 == 1 for number in numbers))
        put = {one for one in range(1, number, 3) if self.answers[one] is not None}
        missing = len(put - set(numbers))
        # One a killed getter at most: it was taken, and not noted.
        self.assertLessEqual(missing, self.killed_getters)
        lost_tasks = sum(answer is None for answer in self.answers.values())
        self.assertLessEqual(self.queue._lost, missing + lost_tasks)

    def check_lock(self):
        """Between a holder's two notes is no other's, but for one whose holder was killed inside."""
        inside = None
        for pid, number, way in notes(self.files / 'locked'):
            if way == 'in':
                self.assertTrue(inside is None or int(inside[0]) in self.killed_workers, 'two hold the lock')
                inside = pid, number
            else:
                self.assertEqual((pid, number), inside, 'two hold the lock')
                inside = None


class ForkTest(Storm, helpers.Case):
    method = 'fork'
    kills = 150


class SpawnTest(Storm, helpers.Case):
    method = 'spawn'
    kills = 50


if __name__ == '__main__':
    unittest.main()
