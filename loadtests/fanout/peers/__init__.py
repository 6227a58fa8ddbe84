"""The peers: each a small server program at its best honest configuration, without compression.

All speak the same few lines. A peer prints `port <n>` when it listens, reads `go` from its standard input
when every viewer is there, sends its frames at the given rate to all of them, prints `done <frames>`, and
ends when its input does.
"""
