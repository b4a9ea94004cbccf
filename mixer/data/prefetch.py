"""Runs an iterator in a thread, ahead of its consumer."""
from collections.abc import Generator
from collections.abc import Iterable
import queue
import threading
from typing import Any
from typing import TypeVar

T = TypeVar('T')


def ahead(iterable: Iterable[T]) -> Generator[T, None, None]:
  """Yields the items of an iterable, each made while the one before is used.

  An error of the iterable is raised here.
  """
  items: queue.Queue[Any] = queue.Queue(maxsize=1)
  closed = threading.Event()

  def put(item):
    while not closed.is_set():
      try:
        return items.put(item, timeout=0.1)
      except queue.Full:
        continue

  def work():
    try:
      for item in iterable:
        put((item, None))
        if closed.is_set():
          return
      put((None, StopIteration()))
    except BaseException as e:   # the consumer raises it
      put((None, e))

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    while True:
      item, error = items.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield item
  finally:
    closed.set()
    thread.join(timeout=10)   # a thread alive at exit can abort the process
