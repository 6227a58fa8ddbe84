"""What is offered, bought, given, sent and given back: prices, offers, benefits, orders, payments, after-sales.

Redis decides who was first, PostgreSQL is the last guard and the books. In which order an act takes its locks, so that
no two wait for each other: docs/decisions/locks.md. Nothing here knows of sockets, pages or commits.
"""
