"""How often verdicts and intervals are wrong: by simulation, and on this machine with the same code twice."""
