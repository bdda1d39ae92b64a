"""The worker, under any launcher: ``horovodrun -np 2 -H a:1,b:1 python harness/run.py --backend horovod``.

Started as a script, Python puts harness/ first on sys.path; the repository's root must be there instead, so that the
four packages are found without an installation.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from harness.worker.main import main

if __name__ == "__main__":
    main()
