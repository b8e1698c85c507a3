"""Processes that decode images, each a run of decode.py: names of files in, pixels out.

Knows nothing of folders, captions or batches.
"""

import os
import subprocess
import sys
import weakref
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

import numpy as np

from unet_keras.data import decode


class Decoders:
    """``workers`` processes for images of one size; they start when they are first needed and end with this object.

    A thread waits for each. A process that ends before its time, as a broken file can make it, is replaced.
    """

    def __init__(self, height: int, width: int, workers: int):
        self._jobs = SimpleQueue()
        for _ in range(workers):
            Thread(target=_work, args=(self._jobs, height, width), daemon=True).start()
        weakref.finalize(self, _end, self._jobs, workers)

    def submit(self, path: str) -> Future:
        """Have a file decoded: a future of uint8 pixels (height, width, 3), or of a str that says why not."""
        future = Future()
        self._jobs.put((future, os.fsencode(path)))
        return future


def _end(jobs, workers):
    with suppress(Empty):
        while True:
            future, _ = jobs.get_nowait()
            future.cancel()
    for _ in range(workers):
        jobs.put(None)


def _work(jobs, height, width):
    """Start a process, have it decode until there is no more to do, and end it: nobody else touches it."""
    process = None
    while (job := jobs.get()) is not None:
        future, name = job
        try:
            if process is None or process.poll() is not None:
                _close(process)
                process = _started(height, width)
            pixels = _decoded(process, name)
            future.set_result(pixels if isinstance(pixels, str) else pixels.reshape(height, width, 3))
        except BaseException as error:  # no process can be started: that is for who asked to hear
            future.set_exception(error)
    _close(process)


def _started(height, width):
    # -P, or the folder of decode.py would come before the libraries; which are where this process has them.
    command = [sys.executable, "-P", decode.__file__, str(height), str(width)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _close(process):
    if process is not None:
        with suppress(OSError), process:  # its input ends, and so does it
            pass


def _decoded(process, name):
    try:
        process.stdin.write(decode.LENGTH.pack(len(name)) + name)
        process.stdin.flush()
        (size,) = decode.LENGTH.unpack(process.stdout.read(decode.LENGTH.size))
        reply = process.stdout.read(1 + size)
    except (OSError, decode.LengthError):
        return f"the process that decoded it ended with {process.wait()}"
    if reply[:1] == b"-":
        return reply[1:].decode(errors="replace")
    return np.frombuffer(reply, np.uint8, offset=1)
