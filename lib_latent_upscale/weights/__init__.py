"""Everything between a release file on the web and a tensor in memory.

`files` finds, `reading` reads, `pickles` reads those safely, `checking` tells whether a file is
what it should be, `transfer` gets it, and `fetching` does all of that in order.
"""
