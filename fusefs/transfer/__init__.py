"""Models on their way into a store and out of it: what `fusefs push`, `pull` and `ls -R` do.

Above the stores and beside the mount; blocking, in threads. It prints nothing: the command line
hands in a `Progress`, and gets a report or an error of one sentence.
"""
