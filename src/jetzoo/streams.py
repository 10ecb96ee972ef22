"""Work that goes on in a thread of its own while its results are used."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

END = object()


def ahead(items, count=2):
    """Iterate over items, of which some are made ready in another thread meanwhile.

    What is raised there is raised here, in its turn. The thread ends with the iteration, also if
    that is left before its end.

    Parameters
    ----------
    items : iterator
    count : int
        Items that are made ready, at most.

    Yields
    ------
    object
        The items in their order.
    """
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, END) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not END:
                waiting.append(thread.submit(next, items, END))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
            items.close()
