"""How is their side kept apart from ours? It runs in a separate process, so that ours cannot affect it."""

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks import Settings


class Elsewhere:
    """A process that makes objects and calls their ``run``, timed by its own clock.

    Our side changes the memory allocator of its process (:mod:`egraff_utils.allocator`); here it stays as a
    user of the upstream packages has it. The process starts with the first request and waits between
    requests.

    Parameters
    ----------
    settings
        :class:`~benchmarks.Settings`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.process = self.pipe = None
        self.seconds = 0.0
        """Time of all calls of :meth:`run` by the clock of that process, s."""

    def make(self, maker: Callable[..., tuple], *arguments: Any) -> Any:
        """Answer of ``maker(*arguments)``, which returns an object, kept in the process, and an answer.

        Raises
        ------
        RuntimeError
            If the function fails; the message holds type and message of its error.
        """
        return self._ask("make", maker, *arguments)

    def run(self, *arguments: Any) -> None:
        """Call ``run`` of the object that was made last."""
        self.seconds += self._ask("run", *arguments)

    def clock(self) -> float:
        """Clock for `compare`, the total time of both processes, of which only one works at a time, s."""
        here = self.settings.clock()
        return here + self.seconds if self.settings.clock is time.process_time else here

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.pipe.send(None)
            self.process.join()
            self.process = None

    def _ask(self, *order):
        if self.process is None:
            self._start()
        self.pipe.send(order)
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, self.settings), daemon=True)
        os.environ["MALLOC_AS_IT_IS"] = "1"  # tells our allocator, not the C library, to change nothing
        try:
            self.process.start()
        finally:
            del os.environ["MALLOC_AS_IT_IS"]


def _serve(pipe, settings):
    from benchmarks.__main__ import prepare

    prepare(settings)
    made = None
    while order := pipe.recv():
        name, *arguments = order
        try:
            if name == "make":
                maker, *arguments = arguments
                made, answer = maker(*arguments)
            else:
                answer = _timed_run(made, arguments, settings)
        except Exception as error:  # any error is sent back as the answer
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _timed_run(made, arguments, settings):
    began = settings.clock()
    made.run(*arguments)
    if settings.synchronize:
        settings.synchronize()
    return settings.clock() - began
