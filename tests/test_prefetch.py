"""The thread that runs an iterator ahead of its consumer."""
import threading
import time

import pytest

from mixer.core import errors
from mixer.data import prefetch


def test_ahead_yields_all_items_in_order():
  assert list(prefetch.ahead(iter(range(50)))) == list(range(50))
  assert list(prefetch.ahead(iter(()))) == []


def test_ahead_raises_the_error_of_the_iterator():
  """The error keeps its type and message and comes after the items before it.
  """
  def work():
    yield 1
    yield 2
    raise errors.RunError('no more')
  items = []
  with pytest.raises(errors.RunError, match='no more'):
    for item in prefetch.ahead(work()):
      items.append(item)
  assert items == [1, 2]


def test_ahead_makes_the_next_item_while_one_is_used():
  """It makes few items ahead."""
  made = []
  def work():
    for i in range(100):
      made.append(i)
      yield i
  items = prefetch.ahead(work())
  next(items)
  wait_until(lambda: len(made) >= 2)
  time.sleep(.05)
  assert len(made) <= 4
  items.close()


@pytest.mark.parametrize('how', ('closed', 'used up', 'failed'))
def test_the_thread_ends_with_the_consumer(how):
  """It may be waiting to hand over an item that nobody will take."""
  before = set(threading.enumerate())
  made = []
  def work():
    for i in range(10**9 if how == 'closed' else 3):
      made.append(i)
      yield i
    if how == 'failed':
      raise ValueError('failed')
  items = prefetch.ahead(work())
  next(items)
  assert set(threading.enumerate()) - before
  if how == 'closed':
    wait_until(lambda: len(made) >= 3)
    time.sleep(.05)
    items.close()
  else:
    with pytest.raises((ValueError, StopIteration)):
      while True:
        next(items)
  wait_until(lambda: not set(threading.enumerate()) - before)


def wait_until(condition):
  """Waits until `condition()` is true."""
  end = time.monotonic() + 5
  while not condition():
    assert time.monotonic() < end
    time.sleep(.01)
