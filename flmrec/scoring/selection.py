"""The inner loops of the kernel, compiled by Numba: what is left to do with a block of approximate scores.

No `fastmath`: every result is the same on every call. The loops release the GIL, so tiles run side by side in threads.
Letters: A users that are still searched, N users of the tile, W columns of the block, G groups of SIZE columns in it,
R places of a user's reservoir.
"""

from typing import Any

import numba
import numpy as np

Array = Any  # of NumPy; Numba compiles for the types that it meets
_compiled = numba.njit(nogil=True, cache=True, error_model="numpy")
_ROUNDS = 14  # halvings in `_reached_by`: the threshold is within 1/16,384 of the range of the values
GROUP = 32  # items that share one step, one error and one maximum
NEVER = np.float32(np.inf)  # threshold of a user who overflowed: nothing reaches it


@_compiled
def hide_excluded(
    scores: Array, rows: Array, first: int, indptr: Array, positions: Array, cursor: Array, hidden: float
) -> None:
    """Overwrites the excluded columns of (A, W) scores with `hidden`.

    positions: each user's excluded positions, ascending, repeats allowed. cursor (N,): how far the user has come.
    """
    width = scores.shape[1]
    for a in range(len(rows)):
        row = rows[a]
        at = cursor[row]
        while at < indptr[row + 1] and positions[at] < first + width:
            if positions[at] >= first:
                scores[a, positions[at] - first] = hidden
            at += 1
        cursor[row] = at


@_compiled
def collect(
    scores: Array,
    maxima: Array,
    rows: Array,
    first: int,
    users: Array,
    groups: Array,
    reservoir: Array,
    k: int,
    lowest: Any,
) -> None:
    """Adds to the reservoirs what (A, W) approximate scores leave possible, and raises the users' thresholds.

    scores * user_step * group_step is off by at most user_error * length + norm * group_error (see topk.py). An item
    is kept while its upper bound reaches the user's threshold, a lower bound of the k-th best score so far.
    maxima: (A, G) of the scores. users: step, error, norm, each (N,). groups: step, length, error, each (G,).
    lowest: the lowest real value in scores; what is below it is hidden. A user whose bounds are too loose for the
    reservoir gets threshold NEVER.
    """
    user_step, user_error, norm = users
    group_step, length, group_error = groups
    position, low, high, count, threshold = reservoir
    n_groups, places = len(group_step), position.shape[1]
    bar, slack = np.empty(n_groups, np.float32), np.empty(n_groups, np.float32)
    for a in range(len(rows)):
        row = rows[a]
        line, best, n, least = scores[a], maxima[a], count[row], threshold[row]
        for g in range(n_groups):
            slack[g] = user_error[row] * length[g] + norm[row] * group_error[g]
        if n == 0 and n_groups >= k:  # the best items of k groups are at least this good
            for g in range(n_groups):
                bar[g] = np.float32(best[g]) * (user_step[row] * group_step[g]) - slack[g]
            least = _reached_by(bar, n_groups, k)
        _set_bars(bar, least, user_step[row], group_step, slack, lowest)
        full = min(n + k + GROUP, places - GROUP)
        mine = position[row], low[row], high[row]
        for g in range(n_groups):
            if best[g] >= bar[g]:
                n = _push(line, g * GROUP, first, bar[g], user_step[row] * group_step[g], slack[g], mine, n)
            if n > full:
                least = max(least, _reached_by(low[row], n, k))
                n = _keep(mine, n, least)
                if 2 * n > places:
                    least = NEVER
                    break
                _set_bars(bar, least, user_step[row], group_step, slack, lowest)
                full = min(n + k + GROUP, places - GROUP)
        count[row], threshold[row] = n, least


@_compiled
def flatten(reservoir: Array, k: int, users: Array, positions: Array) -> int:
    """Writes what is left of all reservoirs, user by user, and its number into count. Returns how many there are."""
    position, low, high, count, threshold = reservoir
    total = 0
    for row in range(len(count)):
        n = 0 if threshold[row] == NEVER else count[row]
        if n >= k:
            n = _keep((position[row], low[row], high[row]), n, max(threshold[row], _reached_by(low[row], n, k)))
        for i in range(n):
            users[total + i], positions[total + i] = row, position[row, i]
        count[row] = n
        total += n
    return total


@_compiled
def _push(line: Array, at: int, first: int, bar: float, step: float, slack: float, mine: Array, n: int) -> int:
    """Adds the items of the group at columns at .. at + GROUP that reach the bar. Returns the new count."""
    position, low, high = mine
    for w in range(at, at + GROUP):
        if line[w] >= bar:
            value = np.float32(line[w]) * step
            position[n], low[n], high[n] = first + w, value - slack, value + slack
            n += 1
    return n


@_compiled
def _set_bars(bar: Array, least: float, user_step: float, group_step: Array, slack: Array, lowest: float) -> None:
    """The approximate score from which an item of a group may still belong to the list, before its steps."""
    for g in range(len(bar)):
        bar[g] = max((least - slack[g]) / (user_step * group_step[g]), lowest)


@_compiled
def _reached_by(values: Array, n: int, k: int) -> Any:
    """A value that at least k of the first n values reach, close below the k-th largest. Needs n >= k."""
    low = high = values[0]
    for i in range(n):
        low, high = min(low, values[i]), max(high, values[i])
    for _ in range(_ROUNDS):
        middle = np.float32(0.5) * low + np.float32(0.5) * high
        if _count_reaching(values, n, middle) >= k:
            low = middle
        else:
            high = middle
    return low


@_compiled
def _count_reaching(values: Array, n: int, least: float) -> Any:
    found = np.int32(0)
    for i in range(n):
        found += np.int32(values[i] >= least)
    return found


@_compiled
def _keep(mine: Array, n: int, least: float) -> int:
    """Moves the entries whose upper bound reaches `least` to the front. Returns their number."""
    position, low, high = mine
    kept = 0
    for i in range(n):
        position[kept], low[kept], high[kept] = position[i], low[i], high[i]
        kept += high[i] >= least
    return kept
