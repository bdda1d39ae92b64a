"""Duels: engines that live at the same time on the same devices and take turns in blocks of a few optimizer steps.

Batch content, drift and load of the machine then hit both engines of a round alike and cancel in their ratio. What
differs from start to start of the processes (placement, NUMA, memory layout) does not cancel within one start, so a
study holds several duels, each a fresh start. Sources: duet benchmarking (Bulej et al., ICPE 2020) and randomized
multiple interleaved trials (Abedi and Brecht, ICPE 2017).
"""
