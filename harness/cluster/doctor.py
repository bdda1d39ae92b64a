"""Finds what is wrong with a cluster before a job starts on it.

Every node of the hostfile is asked over ssh, in parallel, by a small standard-library program that needs no
installation there (`mpi.probe`); neighbours then measure their link. What is found is judged by
`harness.cluster.doctor_checks`. Nothing is changed on any node.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness.cluster.doctor_checks import CHECKS, Diagnosis, Report, Wanted, bits, rate_limits
from mpi import hostfile
from mpi.sessions import LOGIN_S, Session, in_parallel, measure_link, measure_pairs

CONNECT_S = LOGIN_S + 4.0
FACTS_S = 35.0  # what it waits for itself is less: mpirun 20 s, nvidia-smi 8 s
EACH_HOST_S, MOST_S = 0.3, 30.0  # more for every host, up to so much: this machine logs in on all of them at once
AGAIN_S = 0.5  # each further measurement of a slow link
AGAIN_TOTAL_S = 6.0  # for all slow ones, and for all failed ones: where many stay so for that long it is no accident
AGAIN_ROUNDS = 3
_PORTS = range(20011, 32000, 7)  # where jobs look for theirs


def examine(
    hosts: Sequence[hostfile.Host], request: dict[str, Any], wanted: Wanted, *, with_links: bool = True
) -> tuple[list[Report], list[dict[str, Any]]]:
    """Asks every host at once, then lets neighbours measure their link, slow ones again while the others rest.
    Never raises for a node's sake."""
    # A lone localhost needs no ssh; everywhere else pdsh and the launchers log in on every host, this one too.
    alone = len(hosts) == 1 and hosts[0].name in ("localhost", "127.0.0.1")
    patience = min(EACH_HOST_S * len(hosts), MOST_S)
    login_s = LOGIN_S + min(patience, LOGIN_S)  # a host that is off keeps everybody waiting for so long
    sessions: list[Session] = in_parallel(
        lambda n: Session(None if alone else hosts[n].name, sys.executable, login_s=login_s), len(hosts)
    )
    try:
        reports = in_parallel(lambda n: _ask(sessions[n], hosts[n], request, patience), len(hosts), width=128)
        reached = [n for n, report in enumerate(reports) if report.facts]
        links: list[dict[str, Any]] = []
        if with_links and len(reached) > 1:
            # As each sender knows it: a node's own idea of its address may be the loopback.
            names = [hosts[n].name for n in reached]
            addresses = [
                {k: reports[n].facts["addresses"].get(name) or name for k, name in enumerate(names)} for n in reached
            ]
            asked = [sessions[n] for n in reached]
            measured = measure_pairs(asked, addresses, _PORTS)

            def again(sender: int, receiver: int) -> dict[str, Any]:
                return measure_link(asked[sender], asked[receiver], addresses[sender][receiver], _PORTS, AGAIN_S)

            for link in surely_slow(measured, wanted, again):
                links.append({**link, "from": reached[link["from"]], "to": reached[link["to"]]})
        return reports, links
    finally:
        in_parallel(lambda n: sessions[n].close(), len(sessions), width=128)


def surely_slow(
    links: Sequence[dict[str, Any]], wanted: Wanted, again: Callable[[int, int], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """`links` with the best of up to 1 + AGAIN_ROUNDS measurements for those that seemed slow, of two for the failed.

    Measured beside others, for a moment, a sound link can seem slow where a node is busy; none can seem faster than it
    is. So each is measured alone until it passes, the nearest to passing first: a few that are slow in truth do not use
    up the time of many that are not. None is begun after AGAIN_TOTAL_S, for failed and slow ones each.
    again: (from, to) -> what is measured of that link alone.
    """
    found = list(links)

    def still_slow() -> list[int]:
        _, floor = rate_limits(found, wanted)
        slow = [n for n, link in enumerate(found) if link.get("bytes_per_s", floor) < floor]
        return sorted(slow, key=lambda n: found[n]["bytes_per_s"], reverse=True)

    def failed() -> list[int]:
        return [n for n, link in enumerate(found) if "error" in link]

    for doubtful, rounds in ((failed, 1), (still_slow, AGAIN_ROUNDS)):
        end = time.monotonic() + AGAIN_TOTAL_S
        for _ in range(rounds):
            for n in doubtful():
                if time.monotonic() > end:
                    break
                once_more = again(found[n]["from"], found[n]["to"])
                if "error" not in once_more and once_more.get("bytes_per_s", 0.0) > found[n].get("bytes_per_s", 0.0):
                    found[n] = {key: found[n][key] for key in ("from", "to")} | dict(once_more)
    return found


def _ask(session: Session, host: hostfile.Host, request: dict[str, Any], patience_s: float) -> Report:
    trouble = session.ready(CONNECT_S + patience_s)
    if trouble:
        return Report(host=host.name, slots=host.slots, trouble=trouble)
    asked = time.time()
    answer = session.ask(request, FACTS_S + patience_s)
    answered = time.time()
    if "error" in answer:
        return Report(host=host.name, slots=host.slots, trouble=answer["error"])
    # `asked` there lies between our `asked` and `answered`: the rest of the way is the uncertainty.
    skew = answer["asked"] - asked
    error = answered - asked - max(0.0, answer["time"] - answer["asked"])
    return Report(
        host=host.name,
        slots=host.slots,
        noise=tuple(session.noise),
        facts=answer,
        skew_s=skew,
        skew_error_s=max(0.0, error),
    )


def as_dict(
    reports: Sequence[Report], links: Sequence[dict[str, Any]], findings: Sequence[Diagnosis], seconds: float
) -> dict[str, Any]:
    """What was found, for `--json`."""
    return {
        "ok": not any(finding.level == "fail" for finding in findings),
        "seconds": round(seconds, 2),
        "findings": [asdict(finding) for finding in findings],
        "nodes": [asdict(report) for report in reports],
        "links": [{**link, "from": reports[link["from"]].host, "to": reports[link["to"]].host} for link in links],
    }


def print_report(
    reports: Sequence[Report],
    links: Sequence[dict[str, Any]],
    findings: Sequence[Diagnosis],
    seconds: float,
    *,
    links_measured: bool,
) -> None:
    """The checks as a table, and below it what is wrong with its remedy."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    reached = [report for report in reports if report.facts]
    table = Table(title=f"{len(reports)} nodes, {len(reached)} reached, {seconds:.1f} s", title_justify="left")
    for heading in ("check", "what", "result"):
        table.add_column(heading)
    for check, what in CHECKS.items():
        own = [finding for finding in findings if finding.check == check]
        bad = sum(finding.level == "fail" for finding in own)
        if bad:
            result = f"[red]{bad} failed[/red]"
        elif own:
            result = f"[yellow]{len(own)} to look at[/yellow]"
        elif (check in ("link", "ports") and not links_measured and check == "link") or (
            not reached and check != "ssh"
        ):
            result = "not checked"
        else:
            result = "[green]ok[/green]"
        table.add_row(check, what + _aside(check, reached, links), result)
    console.print(table)
    for finding in findings:
        colour = "red" if finding.level == "fail" else "yellow"
        console.print(f"[{colour}]{finding.level}[/{colour}] ", end="")
        console.print(
            f"{finding.node}: {finding.check}: {finding.problem}", markup=False, highlight=False, soft_wrap=True
        )
        console.print(f"     -> {finding.remedy}", markup=False, highlight=False, soft_wrap=True)
    if any(finding.level == "fail" for finding in findings):
        console.print("do not start: mend what failed first")
    else:
        console.print("ready to start")


def _aside(check: str, reached: Sequence[Report], links: Sequence[dict[str, Any]]) -> str:
    """The measured figure beside a check's name."""
    rates = [link["bytes_per_s"] for link in links if link.get("bytes_per_s")]
    if check == "link" and rates:
        trips = sorted(link["round_trip_s"] for link in links if "round_trip_s" in link)
        return f": {bits(min(rates))} to {bits(max(rates))}, round trip {trips[len(trips) // 2] * 1e6:.0f} us"
    if check == "clock" and reached:
        return f": within {max(abs(report.skew_s) for report in reached):.2f} s"
    if check == "gpu" and reached and not any(report.facts["gpus"] for report in reached):
        return ": none on any node"
    return ""
