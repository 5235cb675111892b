"""Threads under the names of processes."""

import queue
import threading
import unittest

import helpers
from procession import dummy


class DummyTest(helpers.Case):

    def test_a_process_is_a_thread(self):
        seen = []
        process = dummy.Process(target=lambda *args, **kwargs: seen.append((args, kwargs)), args=(1,), kwargs={'x': 2})
        self.assertIsNone(process.exitcode)
        process.start()
        process.join()
        self.assertEqual((seen, process.exitcode), ([((1,), {'x': 2})], 0))
        self.assertIs(dummy.current_process(), threading.current_thread())

    def test_children_are_the_callers_own(self):
        gate = threading.Event()
        process = dummy.Process(target=gate.wait)
        process.start()
        self.assertEqual(dummy.active_children(), [process])
        gate.set()
        process.join()
        self.assertEqual(dummy.active_children(), [])

    def test_only_its_maker_starts_it(self):
        process, errors = dummy.Process(target=print), []

        def start():
            try:
                process.start()
            except RuntimeError as error:
                errors.append(str(error))

        other = threading.Thread(target=start)
        other.start()
        other.join()
        self.assertRegex(errors[0], 'Parent is .* but current_process is')

    def test_what_is_shared_is_plain(self):
        value = dummy.Value('i', 3)
        value.value += 1
        self.assertEqual((value.value, repr(value)), (4, "<Value('i', 4)>"))
        self.assertEqual(list(dummy.Array('i', [1, 2])), [1, 2])
        self.assertEqual(repr(dummy.Namespace(b=1, a=2, _c=3)), 'Namespace(a=2, b=1)')
        self.assertIs(dummy.Manager(), dummy)
        self.assertIs(dummy.JoinableQueue, queue.Queue)
        self.assertEqual((dummy.dict, dummy.list), (dict, list))
        dummy.freeze_support()
        dummy.shutdown()

    def test_connections(self):
        one, other = dummy.Pipe()
        with one:
            one.send([1])
            self.assertTrue(other.poll())
            self.assertEqual(other.recv(), [1])
            self.assertFalse(other.poll(0.01))
            threading.Timer(0.05, other.send_bytes, (b'late',)).start()
            self.assertTrue(one.poll(60))
            self.assertEqual(one.recv_bytes(), b'late')

    def test_a_listener_and_a_client(self):
        with dummy.connection.Listener() as listener:
            client = dummy.connection.Client(listener.address)
            server = listener.accept()
            client.send('question')
            self.assertEqual(server.recv(), 'question')
            server.send('answer')
            self.assertEqual(client.recv(), 'answer')
        self.assertIsNone(listener.address)

    def test_its_pool_is_not_built(self):
        with self.assertRaisesRegex(NotImplementedError, r'\bPool\b'):
            dummy.Pool(2)


if __name__ == '__main__':
    unittest.main()
