"""One end of a talk with another program: with a Rust one, with the package, or with a stock Python.

    peer.py PACKAGE listen FOLDER [objects]       says where it listens, then what came of each talk
    peer.py PACKAGE connect INET UNIX [objects]   says what came of each talk

PACKAGE is multiprocessing or procession. Four talks: at each address one with a wrong key, then one with the right
one. Objects are sent where both ends are Python. rust/examples/peer.rs says the same in Rust; `cargo xtask interop`
has every pair of them talk.
"""

import importlib
import os
import sys
from fractions import Fraction

KEY = b'the right key'
WRONG_KEY = b'a wrong key'
# On both sides of what CPython sends with one call, and of what a socket takes at once.
LENGTHS = [0, 1, 16_384, 16_385, 1 << 20, 3_000_001]
OBJECTS = [None, 'text \N{SNOWMAN}', (1, [2.5, {3}], {'four': b'5' * 100_000}), Fraction(6, 7)]
# Who doesn't answer by then won't.
PATIENCE = 30
CHANGED = bytes(byte ^ 1 for byte in range(256))


def main(package, role, *words):
    connection = importlib.import_module(package + '.connection')
    authentication = importlib.import_module(package).AuthenticationError
    talk_objects = words[-1] == 'objects'
    if role == 'listen':
        addresses = [('127.0.0.1', 0), os.path.join(words[0], 'listener')]
        # As many wait as come.
        listeners = [connection.Listener(address, backlog=4, authkey=KEY) for address in addresses]
        inet, unix = (listener.address for listener in listeners)
        print('%s:%d %s' % (*inet, unix), flush=True)
        for listener in listeners:
            expect_refusal(authentication, listener.accept)
            with listener.accept() as peer:
                print(echo(peer, talk_objects), flush=True)
            listener.close()
    else:
        host, port = words[0].rsplit(':', 1)
        for address in [(host, int(port)), words[1]]:
            expect_refusal(authentication, connection.Client, address, authkey=WRONG_KEY)
            with connection.Client(address, authkey=KEY) as peer:
                print(talk(peer, talk_objects), flush=True)


def expect_refusal(authentication, call, *args, **kwds):
    try:
        call(*args, **kwds)
    except authentication:
        print('refused', flush=True)
    else:
        raise AssertionError('a wrong key was let in')


def receive(peer, method):
    if not peer.poll(PATIENCE):
        raise TimeoutError('nothing came')
    return method()


def echo(peer, talk_objects):
    """Sends back what comes, each byte changed, and objects as they are."""
    total = 0
    if talk_objects:
        for _ in OBJECTS:
            peer.send(receive(peer, peer.recv))
    while True:
        try:
            message = receive(peer, peer.recv_bytes)
        except EOFError:
            return f'{total} bytes'
        total += len(message)
        peer.send_bytes(message.translate(CHANGED))


def talk(peer, talk_objects):
    total = 0
    if talk_objects:
        for obj in OBJECTS:
            peer.send(obj)
            back = receive(peer, peer.recv)
            assert back == obj, (back, obj)
    for length in LENGTHS:
        message = bytes(at % 251 for at in range(length))
        peer.send_bytes(message)
        assert receive(peer, peer.recv_bytes) == message.translate(CHANGED), length
        total += length
    return f'{total} bytes'


if __name__ == '__main__':
    main(*sys.argv[1:])
