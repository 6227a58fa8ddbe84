"""Rounds of a show at small scale, in each of which something is killed: nothing oversold, nothing lost.

`plan.py` draws a round from its seed, `house.py` has the processes and kills them, `people.py` are the clients
and what they were told, `play.py` runs a round, `judge.py` compares what was told with rows, counters, the log
and the provider's own books.
"""
