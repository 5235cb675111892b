"""Shared memory that contradicts itself: in a process of its own, since nothing else can go on in it."""

import subprocess
import sys
import unittest

PROGRAM = """
import os, queue
import procession as mp

lock, messages = mp.Lock(), mp.Queue()
names = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
arena = next(name for name in names if os.path.islink(name) and os.readlink(name).startswith("/memfd:procession"))
with open(arena, "r+b", buffering=0) as file:
    # docs/shm.md: the header's `poison`, and its text.
    file.seek(408)
    file.write(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"a test's mark" + bytes(1))
calls = [lock.acquire, lock.release, mp.Lock, mp.Queue, lambda: messages.put(1), messages.get, messages.qsize,
         lambda: messages.get(timeout=1), lambda: mp.Pool(1)]
for number, call in enumerate(calls):
    try:
        call()
    except RuntimeError as error:
        assert str(error).endswith("is poisoned: a test's mark contradicted itself"), error
    else:
        raise AssertionError(f"call {number} went on")
print("all said so", flush=True)
os._exit(0)
"""


class Poison(unittest.TestCase):
    def test_every_call_raises_the_same_runtime_error(self):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
        )
        self.assertEqual((done.returncode, done.stdout), (0, "all said so\n"), done.stderr)


if __name__ == "__main__":
    unittest.main()
