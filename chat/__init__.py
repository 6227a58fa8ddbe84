"""What is said and voted in a show: comments, polls, reactions.

Domain methods take an actor and a command's values, let one Lua script decide and append to the show's
log, and return the reply or raise a Refusal. Nothing here knows of sockets, pages or commits.
"""
