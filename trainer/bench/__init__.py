"""Measuring throughput: `trainer bench` runs the real loop in processes that are thrown away, many times, in turns.

cells.py          the words of a bench → cells: model × strategy × precision × … × processes
opening.py        a folder that holds one bench, gone on with by the same command
rounds.py         each cell once a round, by the front door and the agent; what was measured is kept after every repeat
measuring.py      in a rank: when the loop's steps begin and end, what they held, what the device did meanwhile
results.py        what came out: results.json, medians and spreads, the conditions under which it was measured
scaling.py        1…N processes: efficiency
comparison.py     two results: ratios with intervals that know the noise
tables.py         for the terminal, and as Markdown;  page.py, pictures.py  as one HTML page
"""
