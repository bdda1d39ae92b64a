"""`harness tune`: each engine at its best. Its own settings are tried by short duels against the engine as it comes.

Every engine gets the same number of trials of the same length. The better half of the candidates goes on to the next,
longer rung (successive halving: Jamieson and Talwalkar, AISTATS 2016), pairs of the better ones join them. What is left
is measured once more, by duels that the search has not seen: the best of many noisy figures is too good, a fresh figure
is not.
"""
