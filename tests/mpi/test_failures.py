"""One line out of real output of each launcher (kept as it was printed, shortened)."""

from __future__ import annotations

import pytest

from mpi.failures import explain

DEEPSPEED_PDSH = """\
b: WORKER up
b: [2026-11-24 23:47:02,085] [INFO] [launch.py:253:sigkill_handler] Killing subprocess 208
b: [2026-11-24 23:47:02,086] [ERROR] [launch.py:259:sigkill_handler] ['python3', 'x.py'] exits with return code = -9
pdsh@a: b: ssh exited with exit code 247
"""
HOROVODRUN = """\
[1]<stderr>:Traceback (most recent call last):
[1]<stderr>:ValueError: bad tile on rank 1
Process 1 exit with status code 1.
Terminating remaining workers after failure of Process 1.
[0]<stderr>:Terminated
Process 0 exit with status code 143.
RuntimeError: Horovod detected that one or more processes exited with non-zero status, thus causing the job to be ...
Process name: 1
Exit code: 1
"""
HOROVODRUN_LOST = "Process 1 exit with status code 255.\nTerminating remaining workers after failure of Process 1.\n"
# mpirun writes a tag in front of each write, also in the middle of another rank's line.
MPIRUN = """\
[1,1]<stdout>:WORKER[1,1]<stdout>: 2[1,1]<stderr>:Traceback (most recent call last):
[1,1]<stderr>:  File "/tmp/w.py", line 8, in <module>
[1,0]<stdout>:WORKER[1,1]<stderr>:ValueError: bad tile on rank 1
  Process name: [[16173,1],1]
  Exit code:    1
"""
MPIRUN_KILLED = "mpirun noticed that process rank 1 with PID 0 on node b exited on signal 9 (Killed).\n"
TORCHRUN = """\
ValueError: bad tile on rank 1
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
/tmp/w.py FAILED
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 21481)  (SIGTERM)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : 1 (pid: 21482)
"""
GLOO_PEER = """\
[0]<stderr>:RuntimeError: [gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.77.0.2]:21349
Process 1 exit with status code 137.
Process 0 exit with status code 1.
"""


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        (DEEPSPEED_PDSH, 1, "a worker on node b was ended by SIGKILL"),
        (HOROVODRUN, 1, "rank 1 failed: ValueError: bad tile on rank 1"),
        (HOROVODRUN_LOST, 1, "rank 1 was killed, or the connection to its node was lost (ssh exit code 255)"),
        (MPIRUN, 1, "rank 1 failed: ValueError: bad tile on rank 1"),
        (MPIRUN_KILLED, 137, "rank 1 was ended by SIGKILL"),
        (TORCHRUN, 1, "rank 1 failed: ValueError: bad tile on rank 1"),
        (GLOO_PEER, 1, "rank 1 was ended by SIGKILL"),
        ("Traceback ...\nRuntimeError: one", 1, "a worker failed: RuntimeError: one"),
        ("", -11, "the launcher was ended by SIGSEGV"),
        ("nothing to learn", 3, "a worker failed with exit code 3: see log.txt"),
    ],
)
def test_who_failed_first_and_why(text, code, reason):
    assert explain(text.splitlines(), code) == reason


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]<stderr>:OSError: [Errno 28] No space left on device", "no space left on device"),
        ("ssh: connect to host b port 22: Connection refused", "node b: ssh port 22: Connection refused"),
        ("ssh: Could not resolve hostname zz: Name or service not known", "node zz: its name is not known"),
        ("Host key verification failed.", "host key"),
        ("root@b: Permission denied (publickey).", "root@b: ssh refused the key (publickey)"),
        ("b: ModuleNotFoundError: No module named 'deepspeed'", "Python module 'deepspeed' is not installed"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory"),
    ],
)
def test_known_causes_win_and_carry_their_remedy(line, says):
    reason = explain(["noise", line, "RuntimeError: something later"], 1)
    assert says in reason
    assert ": " in reason
    assert "\n" not in reason
