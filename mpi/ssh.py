"""The ssh command that everything here starts: no password prompt, no endless wait for a host that is not there."""

from __future__ import annotations

CONNECT_S = 10
"""Seconds after which ssh gives up to connect, where not told otherwise."""


def options(*, connect_s: float = CONNECT_S, alive_s: int = 5, log_level: str = "") -> tuple[str, ...]:
    """ssh's options. alive_s: seconds between the signs of life that the other side is asked for, 0 for none; after
    three without an answer ssh ends, so a lost node is noticed after three times as long. log_level: ssh's LogLevel."""
    words = ["BatchMode=yes", f"ConnectTimeout={connect_s:.0f}"]
    if alive_s:
        words += [f"ServerAliveInterval={alive_s}", "ServerAliveCountMax=3"]
    if log_level:
        words.append(f"LogLevel={log_level}")
    return tuple(part for word in words for part in ("-o", word))
