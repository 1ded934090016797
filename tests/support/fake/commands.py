"""The fake project's commands: each function is one, called with its arguments as strings.

What a function prints is told in its docstring, which is also the command's help.
"""

import json
import os
import signal
import subprocess
import sys
import time

LONG = 60


def names():
    """The names of the commands: every public function of this module but this one."""
    return sorted(
        name
        for name, value in globals().items()
        if callable(value) and getattr(value, "__module__", None) == __name__
        if not name.startswith("_") and name != "names"
    )


def echo(*args):
    """Prints its arguments as a JSON list."""
    print(json.dumps(args))


def both(*lines):
    """Prints the lines in turn on stdout, stderr, stdout..."""
    for number, line in enumerate(lines):
        print(line, file=(sys.stdout, sys.stderr)[number % 2])


def slow(count, seconds):
    """Prints `line 1` to `line COUNT`, one each SECONDS."""
    for number in range(1, int(count) + 1):
        print("line", number)
        time.sleep(float(seconds))


def exit(code):
    """Exits with CODE."""
    sys.exit(int(code))


def killself(number):
    """Sends itself signal NUMBER."""
    os.kill(os.getpid(), int(number))
    time.sleep(LONG)


def raw(*pieces):
    """Writes bytes given in hex, each piece by itself; `2:HEX` goes to stderr, `@SECONDS` is a pause."""
    for piece in pieces:
        if piece.startswith("@"):
            time.sleep(float(piece[1:]))
        elif piece.startswith("2:"):
            _write(2, bytes.fromhex(piece[2:]))
        else:
            _write(1, bytes.fromhex(piece))


def prompt():
    """Prints `Password: ` without a newline and waits."""
    sys.stdout.write("Password: ")
    sys.stdout.flush()
    time.sleep(LONG)


def ignore_term():
    """Ignores SIGTERM, prints `ready`, sleeps."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready")
    time.sleep(LONG)


def on_term():
    """Prints `ready`; on SIGTERM prints `cleaning up` and exits with 3."""

    def clean_up(*_):
        print("cleaning up")
        sys.exit(3)

    signal.signal(signal.SIGTERM, clean_up)
    print("ready")
    time.sleep(LONG)


def orphan(seconds):
    """Leaves a `sleep SECONDS` that holds stdout and stderr behind, prints its PID, exits."""
    print(subprocess.Popen(["sleep", seconds], close_fds=False).pid)
    sys.stdout.flush()
    # No interpreter shutdown: it would warn of a child that is still running.
    os._exit(0)


def escape():
    """Prints a JSON list: its own PID and that of a daemon in a session of its own that ignores SIGTERM; sleeps."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(write, str(os.getpid()).encode())
            os.close(write)
            time.sleep(LONG)
        os._exit(0)
    os.close(write)
    daemon = int(os.read(read, 100))
    os.wait()
    print(json.dumps([os.getpid(), daemon]))
    time.sleep(LONG)


def forks():
    """Prints the PIDs of itself, a child and a grandchild as a JSON list; all sleep."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild != 0:
            os.write(write, str(grandchild).encode())
        time.sleep(LONG)
        os._exit(0)
    print(json.dumps([os.getpid(), child, int(os.read(read, 100))]))
    time.sleep(LONG)


def big(megabytes):
    """Prints that many million bytes as numbered lines of 79 bytes, newline included, and one cut short."""
    left = int(megabytes) * 1000000
    number = 0
    while left > 0:
        block = b"".join(b"%078d\n" % line for line in range(number, number + 10000))[:left]
        _write(1, block)
        number += 10000
        left -= len(block)


def fds():
    """Prints the numbers of its open descriptors as a JSON list."""
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    print(json.dumps(sorted(fd for fd in listed if os.path.exists("/proc/self/fd/%d" % fd))))


def signals():
    """Prints the kernel's lines on ignored and blocked signals. Python itself ignores SIGPIPE and SIGXFSZ."""
    with open("/proc/self/status") as status:
        sys.stdout.writelines(line for line in status if line.startswith(("SigIgn", "SigBlk")))


def env():
    """Prints its environment as a JSON object."""
    print(json.dumps(dict(os.environ), sort_keys=True))


def stdin():
    """Reads stdin to its end and prints its repr."""
    print(repr(sys.stdin.read()))


def session():
    """Prints its PID, parent, process group and session as a JSON object."""
    print(json.dumps({"pid": os.getpid(), "ppid": os.getppid(), "pgid": os.getpgid(0), "sid": os.getsid(0)}))


def cwd():
    """Prints where and how it was called as a JSON object."""
    print(json.dumps({"cwd": os.getcwd(), "argv": sys.argv, "executable": sys.executable}))


def touch(path):
    """Appends a line to a file: its lines count how often this ran."""
    with open(path, "a") as file:
        file.write("ran\n")


def _write(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
