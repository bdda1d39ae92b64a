"""Does every engine compute what a single process computes?"""
