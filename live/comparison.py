"""What must follow from what: the rows of a show compared with each other, with its receipts, its log and Redis.

Each check is a function of what was read; it names each thing that is not as it follows from another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from commerce.receipts import Receipt, digest_of, read_core
from live.books import Books, Counters, Marks, Row
from membership.actor import ShowId, public_id
from membership.points import GOODS_EVENT, lots_for_goods

POSTGRES: Final = "PostgreSQL"
REDIS: Final = "Redis"
LOG: Final = "log"
RECEIPT: Final = "receipts"


class Difference(Struct, frozen=True, kw_only=True):
    """One thing that is not as it follows from another: which, where it was found, and both values."""

    subject: str
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.subject} · {self.where} · expected {self.expected} · found {self.found}"


Found = Iterator[Difference]


def differences(show: ShowId, books: Books) -> Found:
    """The rows with each other and with their receipts."""
    yield from _check_claims(books)
    yield from _check_receipts(show, books)
    yield from _check_orders(books)
    yield from _check_payments(books)
    yield from _check_joins(books)
    yield from _check_points(books)
    yield from _check_offers(books)
    yield from _check_polls(books)


def differences_from_log(books: Books) -> Found:
    """Counters rebuilt from what viewers were told, against the rows. For a log without a gap."""
    yield from _check_told_benefits(books)
    yield from _check_told_orders(books)
    yield from _check_told_polls(books)


def differences_from_counters(books: Books, counters: Counters, marks: Marks) -> Found:
    """The rows with Redis."""
    yield from _check_benefit_counters(books, counters, marks)
    yield from _check_offer_counters(books, counters)
    yield from _check_poll_counters(books, counters, marks)


def is_whole(books: Books, counters: Counters) -> bool:
    """One epoch, and every number of it: none was lost, or cut before it was copied."""
    epoch = counters.meta.get("epoch", "")
    if books.epochs.keys() - {epoch}:
        return False
    return len(books.epochs.get(epoch, {})) == int(counters.meta.get("seq", "0"))


def waiting(books: Books, counters: Counters | None, marks: Marks) -> Iterator[str]:
    for order in books.rows["orders"]:
        if order["state"] == "placed":
            yield f"order {order['id']} is not paid yet: held until {order['hold_until']}"
    for row in books.rows["payment_returns"]:
        if row["done_at"] is None:
            yield f"return {row['id']} of {row['amount_fen']} fen: the provider has not confirmed it"
    decided = {row["payment_id"] for row in books.rows["payment_decisions"]}
    for row in books.rows["payments"]:
        if row["outcome"] == "quarantined" and row["id"] not in decided:
            yield f"payment {row['id']} is kept apart ({row['reason']}): a person has to decide"
    for poll in books.rows["polls"]:
        if poll["closed_at"] is None:
            yield f"poll {poll['id']} is not counted yet: `companion work` has to run"
    if counters is None:
        return
    if counters.unsettled:
        yield f"{counters.unsettled} holds are being settled: `companion work` has to run"
    claims = books.by("claims", "benefit_id")
    for benefit in books.rows["benefits"]:
        now = counters.benefits[benefit["id"]]
        name = _benefit_name(benefit)
        for member, until in now.held.items():
            at = datetime.fromtimestamp(until / 1000, UTC).isoformat(timespec="seconds")
            yield f"{name}: a seat of {member} is held until {at}"
        if now.settling:
            yield f"{name}: {len(now.settling)} ranks are being written"
        if now.unwritten:
            yield f"{name}: {now.unwritten} changes of seats are not written yet: `companion work` has to run"
        for claim in claims[benefit["id"]]:
            known = claim["rank"] in now.claims.get(claim["member_id"], ())
            if known and claim["rank"] not in now.told and claim["id"] in marks.untold:
                yield f"{name}: rank {claim['rank']} is not told yet: `companion work` has to run"


# --- rows with rows ---


def _check_claims(books: Books) -> Found:
    """Ranks within the quota; each by joining has its payment, its seat and the state its order has."""
    payments = {row["id"]: row for row in books.rows["payments"]}
    orders = {row["id"]: row for row in books.rows["orders"]}
    claims = books.by("claims", "benefit_id")
    seats = books.by("seats", "benefit_id")
    for benefit in books.rows["benefits"]:
        name = _benefit_name(benefit)
        earlier = _earlier(books, benefit["id"])
        confirmed = {row["member_id"] for row in seats[benefit["id"]] if row["state"] == "confirmed"}
        seated: set[str] = set()
        for claim in claims[benefit["id"]]:
            subject = f"{name} rank {claim['rank']}"
            if claim["rank"] > benefit["quota"]:
                yield difference(subject, POSTGRES, f"at most {benefit['quota']}", claim["rank"])
            if benefit["needs"] == "nothing":
                continue
            payment = payments.get(claim["payment_id"])
            order = orders.get(payment["order_id"]) if payment else None
            if payment is None or order is None or payment["outcome"] != "accepted":
                yield difference(f"{subject}: its payment", POSTGRES, "one accepted", "none")
                continue
            if order["member_id"] != claim["member_id"]:
                yield difference(f"{subject}: its member", POSTGRES, order["member_id"], claim["member_id"])
            is_kept = claim["state"] == "confirmed"
            if is_kept != (order["state"] == "paid"):
                expected = "confirmed" if order["state"] == "paid" else "recalled or deducted"
                yield difference(f"{subject}: its state", POSTGRES, expected, claim["state"])
            seated.add(claim["member_id"])
            if claim["member_id"] not in confirmed and claim["rank"] > earlier:
                yield difference(f"{subject}: its seat", POSTGRES, "confirmed", "not confirmed")
        for member in sorted(confirmed - seated):
            yield difference(f"{name}: seat of {member}", POSTGRES, "a claim", "none")


def _check_receipts(show: ShowId, books: Books) -> Found:
    """Each claim has its link, each says what its claim says, and each follows from the one before it."""
    claims = {row["id"]: row for row in books.rows["claims"]}
    of_benefit = books.by("claims", "benefit_id")
    receipts = books.by("receipts", "benefit_id")
    for benefit in books.rows["benefits"]:
        name = _benefit_name(benefit)
        before: set[str] = {""}
        linked: set[str] = set()
        for place, row in enumerate(receipts[benefit["id"]], 1):
            claim = claims.get(row["claim_id"])
            linked.add(row["claim_id"])
            rank = claim["rank"] if claim else "none"
            subject = f"{name}: receipt of rank {rank} (link {row['link']})"
            is_now = digest_of(row["core"])
            if row["link"] != place:
                yield difference(subject, RECEIPT, f"link {place}", f"link {row['link']}")
            elif is_now != row["digest"]:
                yield difference(subject, RECEIPT, f"digest {row['digest']}", f"digest {is_now}")
            elif claim is None:
                yield difference(subject, POSTGRES, "a claim", "none")
            else:
                said = _said(row["core"])
                if said is None:
                    yield difference(subject, RECEIPT, "a receipt", "what cannot be read")
                elif said.before not in before:
                    yield difference(
                        subject, RECEIPT, f"after {max(before)[:16] or 'none'}…", f"after {said.before[:16]}…"
                    )
                else:
                    yield from _check_said(show, subject, said, claim, benefit)
            before = {row["digest"], is_now}  # one changed byte is one difference, not two
        for claim in of_benefit[benefit["id"]]:
            if claim["id"] not in linked:
                yield difference(f"{name}: receipt of rank {claim['rank']}", RECEIPT, "one", "none")


def _check_said(show: ShowId, subject: str, said: Receipt, claim: Row, benefit: Row) -> Found:
    """The claim's row against its receipt: the row can be changed by hand, what was signed cannot."""
    row = {
        "show": show,
        "benefit": benefit["id"],
        "title": benefit["title"],
        "what": benefit["what"],
        "value_fen": benefit["value_fen"],
        "rank": claim["rank"],
        "nth": claim["nth"],
        "viewer": public_id(show, claim["member_id"]),
        "at": _ms(claim["claimed_at"]),
    }
    for field, value in row.items():
        if getattr(said, field) != value:
            yield difference(f"{subject}: {field}", POSTGRES, getattr(said, field), value)
    if said.of > benefit["quota"]:
        yield difference(f"{subject}: quota", POSTGRES, f"at least {said.of}", benefit["quota"])


def _check_orders(books: Books) -> Found:
    """Lines add up to the order; the state is what its payments say."""
    lines = books.by("order_lines", "order_id")
    payments = books.by("payments", "order_id")
    returns = books.by("payment_returns", "payment_id")
    for order in books.rows["orders"]:
        subject = f"order {order['id']}"
        goods = sum(line["line_fen"] for line in lines[order["id"]])
        if order["kind"] == "goods" and goods != order["goods_fen"]:
            yield difference(f"{subject}: goods in fen", POSTGRES, f"{goods} (its lines)", order["goods_fen"])
        accepted = [row for row in payments[order["id"]] if row["outcome"] == "accepted"]
        is_paid = order["paid_at"] is not None
        if is_paid != bool(accepted) or len(accepted) > 1:
            yield difference(f"{subject}: accepted payments", POSTGRES, int(is_paid), len(accepted))
            continue
        if is_paid != (order["state"] in ("paid", "refunded")):
            expected = "paid or refunded" if is_paid else "cancelled or expired"
            yield difference(f"{subject}: state", POSTGRES, expected, order["state"])
        for payment in accepted:
            back = sum(row["amount_fen"] for row in returns[payment["id"]])
            if order["state"] == "refunded" and back != payment["amount_fen"]:
                yield difference(f"{subject}: sent back in fen", POSTGRES, payment["amount_fen"], back)


def _check_payments(books: Books) -> Found:
    """Money that came is what was asked for; what bought nothing goes back whole; never more than came."""
    orders = {row["id"]: row for row in books.rows["orders"]}
    returns = books.by("payment_returns", "payment_id")
    decisions = books.by("payment_decisions", "payment_id")
    for start in books.rows["payment_starts"]:
        total = orders[start["order_id"]]["total_fen"]
        if start["amount_fen"] != total:
            yield difference(
                f"order {start['order_id']}: asked of {start['provider']} in fen",
                POSTGRES,
                total,
                start["amount_fen"],
            )
    for payment in books.rows["payments"]:
        subject = f"payment {payment['id']} of order {payment['order_id']}"
        total = orders[payment["order_id"]]["total_fen"]
        if payment["outcome"] == "accepted" and payment["amount_fen"] != total:
            yield difference(f"{subject}: in fen", POSTGRES, total, payment["amount_fen"])
        back = sum(row["amount_fen"] for row in returns[payment["id"]])
        given_up = {row["act"] for row in decisions[payment["id"]]}
        must_go = payment["outcome"] == "returned" or "return" in given_up
        if (must_go and back != payment["amount_fen"]) or back > payment["amount_fen"]:
            yield difference(f"{subject}: sent back in fen", POSTGRES, payment["amount_fen"], back)


def _check_joins(books: Books) -> Found:
    """Each paid plan has its term; each join of the evening its payment, and its refund when there was one."""
    orders = {row["id"]: row for row in books.rows["orders"]}
    terms = {row["payment_id"]: row for row in books.rows["plan_terms"]}
    joins = {row["payment_id"]: row for row in books.rows["joins"]}
    accepted = {row["id"]: row for row in books.rows["payments"] if row["outcome"] == "accepted"}
    for payment in accepted.values():
        order = orders[payment["order_id"]]
        if order["kind"] != "plan":
            continue
        subject = f"plan of order {order['id']}"
        term = terms.get(payment["id"])
        if term is None or (term["member_id"], term["plan_id"]) != (order["member_id"], order["plan_id"]):
            yield difference(subject, POSTGRES, "a term of this member", "none or another's")
            continue
        if (term["end_reason"] == "refunded") != (order["state"] == "refunded"):
            yield difference(f"{subject}: its end", POSTGRES, order["state"], term["end_reason"] or "running")
        join = joins.get(payment["id"])
        if join is not None and (join["refunded_at"] is not None) != (order["state"] == "refunded"):
            yield difference(
                f"{subject}: its join",
                POSTGRES,
                order["state"],
                "refunded" if join["refunded_at"] else "paid",
            )
        if join is not None and join["member_id"] != order["member_id"]:
            yield difference(f"{subject}: who joined", POSTGRES, order["member_id"], join["member_id"])
    for number in sorted(joins.keys() - accepted.keys()):
        yield difference(f"join by payment {number}", POSTGRES, "an accepted payment of this show", "none")


def _check_points(books: Books) -> Found:
    """Paid goods earned what their money gives, lot for lot; a refund took all of it back."""
    entries = books.by("points", "cause")
    for order in books.rows["orders"]:
        earned: dict[str, int] = {}
        net: Counter[str] = Counter()
        for entry in entries[f"order:{order['id']}"]:
            if entry["kind"] == "earn":
                earned[entry["reason"]] = entry["amount"]
            net[entry["lot_id"]] += entry["amount"]
            if entry["member_id"] != order["member_id"]:
                yield difference(
                    f"points of order {order['id']}: whose", POSTGRES, order["member_id"], entry["member_id"]
                )
        expected = (
            lots_for_goods(order["goods_fen"], order["points_bonus_percent"])
            if order["kind"] == "goods" and order["paid_at"] is not None
            else {}
        )
        for reason in sorted(expected.keys() | earned.keys()):
            if reason.startswith(GOODS_EVENT):
                continue  # an event's own percent stands in the event's rule
            if expected.get(reason, 0) != earned.get(reason, 0):
                yield difference(
                    f"points of order {order['id']} ({reason})",
                    POSTGRES,
                    expected.get(reason, 0),
                    earned.get(reason, 0),
                )
        if order["state"] == "refunded" and any(net.values()):
            yield difference(
                f"points of order {order['id']} after its refund", POSTGRES, 0, sum(net.values())
            )


def _check_offers(books: Books) -> Found:
    """What a quota has given is what was sold of it, and not more than there was."""
    sold = _sold(books)
    for offer in books.rows["offers"]:
        subject = f"offer {offer['id']}"
        if offer["quota"] is not None and offer["taken"] != sold[offer["id"]]:
            yield difference(f"{subject}: pieces taken", POSTGRES, sold[offer["id"]], offer["taken"])
        if offer["quota"] is not None and sold[offer["id"]] > offer["quota"]:
            yield difference(
                f"{subject}: pieces sold", POSTGRES, f"at most {offer['quota']}", sold[offer["id"]]
            )
        if offer["status"] != "closed":
            yield difference(f"{subject}: status", POSTGRES, "closed", offer["status"])


def _check_polls(books: Books) -> Found:
    """The result of a poll is the sum of its ballots."""
    ballots = books.by("ballots", "poll_id")
    for poll in books.rows["polls"]:
        voters = sum(row["people"] for row in ballots[poll["id"]])
        tally = [0] * len(poll["choices"])
        for row in ballots[poll["id"]]:
            for choice in row["choices"]:
                tally[choice] += row["people"]
        if (voters, tally) != (poll["voters"], poll["tally"]):
            yield difference(
                f"poll {poll['question']} ({poll['id']})",
                POSTGRES,
                f"{voters} voters {tally} (its ballots)",
                f"{poll['voters']} voters {poll['tally']}",
            )


# --- rows with the log ---


def _check_told_benefits(books: Books) -> Found:
    claims = books.by("claims", "benefit_id")
    for benefit in books.rows["benefits"]:
        name = _benefit_name(benefit)
        opened = books.of_benefit("benefit.opened", benefit["id"])
        raised = books.of_benefit("benefit.raised", benefit["id"])
        quotas = [event["quota"] for event in (*opened, *raised)]
        if quotas and quotas[-1] != benefit["quota"]:
            yield difference(f"{name}: quota", LOG, benefit["quota"], quotas[-1])
        told = Counter(event["rank"] for event in books.of_benefit("benefit.claimed", benefit["id"]))
        earlier = _earlier(books, benefit["id"])
        ranks = {claim["rank"] for claim in claims[benefit["id"]]}
        for rank in sorted(ranks | told.keys()):
            expected = int(rank in ranks and rank > earlier)
            if told[rank] != expected:
                yield difference(f"{name} rank {rank}: times told", LOG, expected, told[rank])


def _check_told_orders(books: Books) -> Found:
    orders = {row["id"]: row for row in books.rows["orders"]}
    paid: Counter[str] = Counter()
    for line in books.rows["order_lines"]:
        if line["kind"] == "goods" and orders[line["order_id"]]["paid_at"] is not None:
            paid[line["offer_id"]] += line["quantity"]
    told_paid: Counter[str] = Counter()
    for event in books.events["order.paid"]:
        told_paid[event["offer"]] += event["quantity"]
    for offer in sorted(paid.keys() | told_paid.keys()):
        if paid[offer] != told_paid[offer]:
            yield difference(f"offer {offer}: pieces told as paid", LOG, paid[offer], told_paid[offer])
    plans = sum(row["kind"] == "plan" and row["paid_at"] is not None for row in orders.values())
    if plans != len(books.events["plan.joined"]):
        yield difference("plans told as paid", LOG, plans, len(books.events["plan.joined"]))


def _check_told_polls(books: Books) -> Found:
    closed = {event["poll"]: event for event in books.events["poll.closed"]}
    for poll in books.rows["polls"]:
        told_poll = closed.get(poll["id"])
        if told_poll is None or (told_poll["voters"], told_poll["tally"]) != (poll["voters"], poll["tally"]):
            yield difference(
                f"poll {poll['question']} ({poll['id']}) as told",
                LOG,
                f"{poll['voters']} voters {poll['tally']}",
                "nothing" if told_poll is None else f"{told_poll['voters']} voters {told_poll['tally']}",
            )


# --- rows with Redis ---


def _check_benefit_counters(books: Books, counters: Counters, marks: Marks) -> Found:
    claims = books.by("claims", "benefit_id")
    for benefit in books.rows["benefits"]:
        name = _benefit_name(benefit)
        now = counters.benefits[benefit["id"]]
        if not now.terms.get("generation"):
            if marks.generation == 1:  # a rebirth brings back only what was not over for long
                yield difference(f"{name}: counters", REDIS, "there", "none")
            continue
        rows = claims[benefit["id"]]
        ranks = {row["rank"] for row in rows}
        generation, version = marks.benefits[benefit["id"]]
        wanted: dict[str, tuple[object, object]] = {
            "quota": (benefit["quota"], now.terms.get("quota")),
            "status": (benefit["status"], now.terms.get("status")),
            "confirmed": (len(rows), now.terms.get("confirmed")),
            "generation": (generation, now.terms.get("generation")),
            "version": (version, now.terms.get("version")),
        }
        for field, number in (("confirmed", len(rows)), ("held", 0), ("queued", now.queued)):
            wanted[f"{field} as shown"] = number, counters.counts.get(f"benefit:{benefit['id']}|{field}", 0)
        if benefit["needs"] == "nothing":
            wanted["ranks given"] = len(ranks | now.spare), now.terms.get("ranked")
        for field, (expected, is_now) in wanted.items():
            if str(expected) != str(is_now):
                yield difference(f"{name}: {field}", REDIS, expected, is_now)
        for rank in sorted(ranks ^ now.told):
            yield difference(
                f"{name} rank {rank}: told",
                REDIS,
                "yes" if rank in ranks else "no",
                "yes" if rank in now.told else "no",
            )
        own: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            own[row["member_id"]].append(row["rank"])
        for member in sorted(own.keys() | now.claims.keys()):
            if own.get(member, []) != now.claims.get(member, []):
                yield difference(
                    f"{name}: ranks of {member}",
                    REDIS,
                    own.get(member, "none"),
                    now.claims.get(member, "none"),
                )


def _check_offer_counters(books: Books, counters: Counters) -> Found:
    sold = _sold(books)
    people: Counter[str] = Counter()
    holds: dict[str, list[list[Any]]] = defaultdict(list)
    orders = {row["id"]: row for row in books.rows["orders"]}
    for line in books.rows["order_lines"]:
        order = orders[line["order_id"]]
        if line["piece"] and order["paid_at"] is not None:
            people[f"{line['offer_id']}|{order['member_id']}"] += line["quantity"]
            holds[order["id"]].append([line["offer_id"], line["quantity"]])
    for offer in books.rows["offers"]:
        subject = f"offer {offer['id']}"
        wanted = {
            "held": (0, counters.counts.get(f"offer:{offer['id']}|held", 0)),
            "sold": (sold[offer["id"]], counters.counts.get(f"offer:{offer['id']}|sold", 0)),
            "quota": (
                "" if offer["quota"] is None else offer["quota"],
                counters.offers.get(f"{offer['id']}|quota", ""),
            ),
            "status": (offer["status"], counters.offers.get(f"{offer['id']}|status", "none")),
        }
        for field, (expected, is_now) in wanted.items():
            if str(expected) != str(is_now):
                yield difference(f"{subject}: {field}", REDIS, expected, is_now)
    for person in sorted(people.keys() | counters.people.keys()):
        if people[person] != counters.people.get(person, 0):
            offer_id, _, member = person.partition("|")
            yield difference(
                f"offer {offer_id}: pieces of {member}", REDIS, people[person], counters.people.get(person, 0)
            )
    for number in sorted(holds.keys() | counters.holds.keys()):
        record = counters.holds.get(number)
        is_now = None if record is None else sorted(map(list, record["o"]))
        if is_now != (sorted(holds[number]) if number in holds else None) or (record and record["s"] != "s"):
            yield difference(
                f"order {number}: its pieces", REDIS, f"sold {holds.get(number, 'none')}", record or "none"
            )


def _check_poll_counters(books: Books, counters: Counters, marks: Marks) -> Found:
    """A show that was reborn does not count its closed polls again."""
    for poll in books.rows["polls"] if marks.generation == 1 else ():
        wanted = {"voters": poll["voters"], **{str(i): number for i, number in enumerate(poll["tally"])}}
        for field, expected in wanted.items():
            is_now = counters.counts.get(f"poll:{poll['id']}|{field}", 0)
            if is_now != expected:
                subject = f"poll {poll['question']} ({poll['id']}): {field}"
                yield difference(subject, REDIS, expected, is_now)


# --- parts ---


def difference(subject: str, where: str, expected: object, found: object) -> Difference:
    return Difference(subject=subject, where=where, expected=str(expected), found=str(found))


def _benefit_name(benefit: Row) -> str:
    return f"benefit {benefit['title']} ({benefit['id']})"


def _earlier(books: Books, benefit: str) -> int:
    """How many were confirmed at the opening, for having joined before it: the first ranks, told at once."""
    return max((event["confirmed"] for event in books.of_benefit("benefit.opened", benefit)), default=0)


def _sold(books: Books) -> Counter[str]:
    """Pieces of each offer in paid orders; what was refunded since stays sold."""
    orders = {row["id"]: row for row in books.rows["orders"]}
    sold: Counter[str] = Counter()
    for line in books.rows["order_lines"]:
        if line["piece"] and orders[line["order_id"]]["paid_at"] is not None:
            sold[line["offer_id"]] += line["quantity"]
    return sold


def _said(core: str) -> Receipt | None:
    try:
        return read_core(core)
    except msgspec.DecodeError:
        return None


def _ms(at: str) -> int:
    return round(datetime.fromisoformat(at).timestamp() * 1000)
