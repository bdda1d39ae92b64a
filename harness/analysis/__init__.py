"""From records to statements: comparison, intervals, cost, MFU, verdict, caveats."""
