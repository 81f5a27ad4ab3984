"""Counts a process's writes and requests, and kills before one.

The kernel itself stops each of these calls of any thread and asks (seccomp's user notification), so the count is complete:
what Python, SQLite or a compiled library does is seen alike, and no library has to be replaced. The process dies of a
real SIGKILL while it is inside of the call and before the kernel carries it out; killed before call N + 1, it has done N.

Not seen, because no system call does it: a store into memory that is mapped from a file. mltrain maps no file to write.
"""

import array
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_OPEN, _OPENAT = 2, 257
CALLS = {
    **{_OPEN: "open", _OPENAT: "openat", 85: "creat", 437: "openat2", 83: "mkdir", 258: "mkdirat"},
    **{1: "write", 18: "pwrite64", 20: "writev", 296: "pwritev", 328: "pwritev2", 40: "sendfile"},
    **{326: "copy_file_range", 275: "splice", 76: "truncate", 77: "ftruncate", 285: "fallocate"},
    **{74: "fsync", 75: "fdatasync", 277: "sync_file_range", 162: "sync", 306: "syncfs"},
    **{82: "rename", 264: "renameat", 316: "renameat2", 86: "link", 265: "linkat", 88: "symlink", 266: "symlinkat"},
    **{87: "unlink", 263: "unlinkat", 84: "rmdir", 42: "connect", 44: "sendto", 46: "sendmsg", 307: "sendmmsg"},
    **{425: "io_uring_setup", 209: "io_submit"},
}
"""Numbers of x86-64 Linux. Opening counts where it is for writing."""

_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_ON_DESCRIPTORS = {
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "pwritev2",
    "sendfile",
    "ftruncate",
    "fallocate",
    "fsync",
} | {*("fdatasync", "sync_file_range", "syncfs", "connect", "sendto", "sendmsg", "sendmmsg")}
_PATHS: dict[str, tuple[int | None, int]] = {
    **dict.fromkeys(("open", "creat", "mkdir", "unlink", "rmdir", "truncate"), (None, 0)),
    **dict.fromkeys(("openat", "openat2", "mkdirat", "unlinkat"), (0, 1)),
    **dict.fromkeys(("rename", "link", "symlink"), (None, 1)),
    **dict.fromkeys(("renameat", "renameat2", "linkat"), (2, 3)),
    "symlinkat": (1, 2),
}
"""Which arguments are the folder's descriptor and the path of what is changed."""
_HERE = -100  # AT_FDCWD


@dataclass(frozen=True)
class Call:
    """A call that a process was about to make."""

    name: str
    target: str

    def __str__(self) -> str:
        return f"{self.name}({self.target})"


class Calls:
    """Counts the calls of a command and kills before one.

    Args:
        matters: whether a call counts.
        fatal: which one is never made; 0: none.
    """

    def __init__(self, matters: Callable[[Call], bool], fatal: int = 0) -> None:
        self.made: list[Call] = []
        self.killed_before: Call | None = None
        self._matters = matters
        self._fatal = fatal
        self._folder = tempfile.TemporaryDirectory(prefix="calls-")
        self.socket = str(Path(self._folder.name) / "socket")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.socket)
        self._server.listen(1)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def finish(self) -> list[Call]:
        """Wait for all processes to end; return the counted calls."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._server.close()
        self._folder.cleanup()
        return self.made

    def _watch(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            pid, listener = _received(connection)
            connection.send(b"!")
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            (_, event), *_ = poll.poll() or [(0, 0)]
            if not event & select.POLLIN:
                break
            self._answer(listener, pid)
        os.close(listener)

    def _answer(self, listener: int, pid: int) -> None:
        request = bytearray(80)
        try:
            fcntl.ioctl(listener, 0xC0502100, request)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return  # it died while it asked
            raise
        identity, thread, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", request)
        call = _described(thread, CALLS[number], arguments)
        if call is not None and self._matters(call):
            if len(self.made) + 1 == self._fatal:
                self.killed_before = call
                os.kill(pid, signal.SIGKILL)
                return
            self.made.append(call)
        try:
            fcntl.ioctl(listener, 0xC0182101, bytearray(struct.pack("=QqiI", identity, 0, 0, 1)))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def _described(thread: int, name: str, arguments: list[int]) -> Call | None:
    process = Path(f"/proc/{thread}")
    try:
        if name in _PATHS:
            folder, place = _PATHS[name]
            path = _string(process, arguments[place])
            if not path.startswith("/"):
                here = ctypes.c_int32(arguments[folder]).value if folder is not None else _HERE
                path = f"{(process / ('cwd' if here == _HERE else f'fd/{here}')).readlink()}/{path}"
            return Call(name, path)
        if name in _ON_DESCRIPTORS:
            return Call(name, str((process / f"fd/{arguments[0]}").readlink()))
        return Call(name, "")
    except OSError:
        return None  # a bad descriptor or address, or the process is gone


def _string(process: Path, address: int) -> str:
    with (process / "mem").open("rb", buffering=0) as memory:
        found = b""
        while b"\0" not in found and len(found) < 4096:
            memory.seek(address + len(found))
            found += memory.read(256 - (address + len(found)) % 256)
    return os.fsdecode(found.partition(b"\0")[0])


def _received(connection: socket.socket) -> tuple[int, int]:
    message, ancillary, *_ = connection.recvmsg(8, socket.CMSG_SPACE(4))
    descriptors = array.array("i")
    descriptors.frombytes(ancillary[0][2])
    return int.from_bytes(message, "little"), descriptors[0]


def hand_over(path: str) -> None:
    """Let the process at a socket decide about later calls."""
    assert platform.machine() == "x86_64", "the numbers of the calls are those of x86-64"
    libc = ctypes.CDLL(None, use_errno=True)
    program = _filter()
    instructions = ctypes.create_string_buffer(b"".join(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    installed = threading.Event()
    listeners: list[int] = []
    # The filter binds the thread that installs it and all that this one starts: another has to do the handing over.
    carrier = threading.Thread(target=_carry, args=(path, installed, listeners))
    carrier.start()
    if libc.prctl(38, 1, 0, 0, 0):  # no new privileges, without which a filter may not be installed
        raise OSError(ctypes.get_errno(), "prctl")
    filtered = Program(len(program), ctypes.cast(instructions, ctypes.c_void_p))
    listeners.append(libc.syscall(317, 1, 8, ctypes.byref(filtered)))
    failed = ctypes.get_errno()
    installed.set()
    carrier.join()
    if listeners[0] < 0:
        raise OSError(failed, "seccomp")
    os.close(listeners[0])


def _carry(path: str, installed: threading.Event, listeners: list[int]) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        installed.wait()
        message = os.getpid().to_bytes(8, "little")
        connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", listeners))])
        connection.recv(1)


def _filter() -> list[bytes]:
    def instruction(code: int, true: int, false: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, true, false, value)

    load, equal, masked, back = 0x20, 0x15, 0x45, 0x06
    notify, allow = 0x7FC00000, 0x7FFF0000
    program = [instruction(load, 0, 0, 0)]
    for number in CALLS:
        if number not in (_OPEN, _OPENAT):
            program += [instruction(equal, 0, 1, number), instruction(back, 0, 0, notify)]
    for number, argument in ((_OPEN, 1), (_OPENAT, 2)):
        program += [
            instruction(equal, 0, 4, number),
            instruction(load, 0, 0, 16 + 8 * argument),
            instruction(masked, 0, 1, _FOR_WRITING),
            instruction(back, 0, 0, notify),
            instruction(back, 0, 0, allow),
        ]
    return [*program, instruction(back, 0, 0, allow)]
