"""The accuracy test with a second look: engines that the first rows leave undecided are judged on more.

Both looks together err by at most 5 % on a side, so each does by 2.5 %, however they depend on each other: Bonferroni's
bound, as for latency (sequential.py). How many looks there may be is known before the first: it depends on the dataset
and the recipe, and on no answer.
"""

from dataclasses import replace
from statistics import NormalDist

from tasks.verdicts.intervals import Z_ONE_SIDED, PairedLoss, bound_loss

ERROR = 0.05


def find_z(looks: int) -> float:
    """Return how many standard errors a one-sided bound keeps where there may be so many looks."""
    return Z_ONE_SIDED if looks == 1 else NormalDist().inv_cdf(1 - ERROR / looks)


def bound_at_look(loss: PairedLoss, looks: int, drawn: int) -> PairedLoss:
    """Return a loss with the bounds of one of so many looks; `drawn` rows, or groups of them, were drawn.

    Of rows that are right or wrong they are Tango's at that level. A bootstrap's are moved away from the figure as a
    normal distribution's would be; the upper one is at least that of no change in as many rows or groups.
    """
    if looks == 1:
        return loss
    z = find_z(looks)
    if loss.mcnemar_p is not None:
        lost = (loss.flips + round(loss.loss * loss.rows)) // 2
        won = loss.flips - lost
        return replace(loss, low=-bound_loss(won, lost, loss.rows, z), high=bound_loss(lost, won, loss.rows, z))
    wider = z / Z_ONE_SIDED
    high = loss.loss + wider * (loss.high - loss.loss)
    return replace(loss, low=loss.loss - wider * (loss.loss - loss.low), high=max(high, z**2 / (drawn + z**2)))
