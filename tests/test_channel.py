"""Framing, descriptors and patience of the connection between daemon and runner."""

import os
import select
import socket

import pytest

from spoolq.channel import Channel, Family, Gone, encode


@pytest.fixture
def ends():
    """Two connected ends."""
    left, right = (Channel(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    yield left, right
    left.close()
    right.close()


def everything(channel, count):
    """The next `count` messages."""
    found = []
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    while len(found) < count:
        poller.poll(60_000)
        found += channel.receive()
    return found


def test_messages_arrive_in_order_and_whole(ends):
    left, right = ends
    left.post_all([encode({"n": i}) for i in range(100)])
    assert [{"n": i} for i in range(100)] == [message for message, _ in everything(right, 100)]
    assert [] == right.receive()


def test_bytes_that_are_no_text_survive(ends):
    left, right = ends
    left.post(encode({"argv": [os.fsdecode(b"caf\xe9")]}))
    ((message, _),) = everything(right, 1)
    assert b"caf\xe9" == os.fsencode(message["argv"][0])


def test_descriptors_come_with_their_message_and_close_on_exec(ends):
    left, right = ends
    for i in range(3):
        read, write = os.pipe()
        left.post(encode({"i": i, "fds": 1}), [write])
        left.post(encode({"plain": i}))
        os.close(write)
        os.set_blocking(read, True)
        (message, (fd,)), (plain, none) = everything(right, 2)
        assert (i, i, []) == (message["i"], plain["plain"], none)
        assert not os.get_inheritable(fd)
        os.write(fd, b"x")
        os.close(fd)
        assert b"x" == os.read(read, 10)
        os.close(read)


def test_what_cannot_be_sent_now_is_kept_with_its_descriptors(ends):
    left, right = ends
    left.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)  # whatever this machine's default is
    text = encode({"text": "x" * 100_000, "fds": 1})
    for _ in range(30):
        fd = os.open(os.devnull, os.O_RDONLY)
        left.post(text, [fd])
        os.close(fd)
    assert left.waiting
    found = []
    while len(found) < 30:
        left.flush()
        found += right.receive()
    assert not left.waiting
    for message, fds in found:
        assert 100_000 == len(message["text"])
        assert 1 == len(fds)
        os.close(fds[0])


def test_the_end_is_told_after_everything_that_was_said(ends):
    left, right = ends
    left.post(encode({"last": 1}))
    left.close()
    assert [({"last": 1}, [])] == right.receive()
    for _ in range(2):
        with pytest.raises(Gone):
            right.receive()
    with pytest.raises(Gone):
        for _ in range(2):
            right.post(encode({}))


@pytest.mark.parametrize("junk", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\1{", b'\0\0\0\x09{"fds":1}'])
def test_nonsense_ends_the_connection(ends, junk):
    left, right = ends
    left.sock.send(junk)
    with pytest.raises(Gone):
        right.receive()


def test_a_half_message_waits_for_its_other_half(ends):
    left, right = ends
    frame = b'\0\0\0\x07{"a":1}'
    left.sock.send(frame[:6])
    assert [] == right.receive()
    left.sock.send(frame[6:])
    assert [({"a": 1}, [])] == right.receive()


def test_the_daemons_end_says_what_it_must():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    family, other = Family(Channel(ours)), Channel(theirs)
    family.hello(version="1", lease=5.0)
    family.lease(6.0, fence=7.0)
    fd = os.open(os.devnull, os.O_RDONLY)
    family.send({"op": "start"}, [fd, fd])
    os.close(fd)
    hello, lease, start = everything(other, 3)
    assert {"op": "hello", "version": "1", "boottime_lease": 5.0, "fence": None} == hello[0]
    assert {"op": "lease", "until": 6.0, "fence": 7.0} == lease[0]
    assert {"op": "start", "fds": 2} == start[0]
    for received in start[1]:
        os.close(received)
    assert not family.waiting
    assert family.fileno() >= 0
    other.close()
    with pytest.raises(Gone):
        family.receive()
    family.close()
