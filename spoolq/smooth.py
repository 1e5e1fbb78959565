"""
Smooth what is measured: an exponential moving average over samples that come at irregular times.

Load and memory of other programs jump; a node that believed each jump would start and refuse jobs at
random. Source: the load average of Unix, which is the same sum with longer constants.
"""

import math

SMOOTH_S = 10.0  # after so long a lasting change counts for 63 %: shorter than people notice, longer than a cron job


def smoothed(known: float | None, new: float, span_s: float) -> float:
    """
    The average after one more sample.

    Args:
        known: the average before, or None if this is the first sample.
        span_s: seconds since the sample before.

    Returns:
        A value between the two; the same for one long span as for many short ones of the same sample.
    """
    return new if known is None else known + (1 - math.exp(-span_s / SMOOTH_S)) * (new - known)
