"""Questions beside training speed, a folder each: parity, wire, overhead, collectives, largest model, prediction."""
