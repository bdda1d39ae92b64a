"""`harness parity`: does every engine compute what a single process computes?"""
