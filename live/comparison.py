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

from commerce.order_book import PAID
from commerce.receipts import Receipt, digest_of, read_core
from commerce.spending import ENDED, LOWERED
from live.books import Books, Counters, Marks, Row
from membership.actor import ProductId, ShowId, public_id
from membership.campaigns import Holding, bases
from membership.moment import in_ms
from membership.points import lots_for_goods

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
    yield from _check_misses(books)
    yield from _check_grants(books)
    yield from _check_guards(books)
    yield from _check_receipts(show, books)
    yield from _check_orders(books)
    yield from _check_payments(books)
    yield from _check_refunds(books)
    yield from _check_parcels(books)
    yield from _check_joins(books)
    yield from _check_points(books)
    yield from _check_discounts(books)
    yield from _check_offers(books)
    yield from _check_pieces(books)
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


def differences_of_stock(marks: Marks) -> Found:
    """Every piece of what was on offer: what came in, less what orders took and did not give back."""
    for row in marks.stock:
        subject = f"stock of {row['sku']}"
        at_hand = row["entered"] - row["at_hand"]
        if row["stock"] != at_hand:
            yield difference(subject, POSTGRES, f"{at_hand} (its ledger less its orders)", row["stock"])
        if row["presale_taken"] != row["to_come"]:
            yield difference(
                f"pre-sale of {row['sku']}", POSTGRES, f"{row['to_come']} (its orders)", row["presale_taken"]
            )
        if row["stock"] < 0 or row["presale_taken"] > (row["presale_cap"] or 0):
            yield difference(f"{subject}: a bound", POSTGRES, "kept", f"{row['stock']} at hand")


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
    """Ranks within the quota; each has the order, the plan, or the payment with its seat that earned it."""
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
            if benefit["needs"] == "order":
                order = orders.get(claim["order_id"] or "")
                owner = order["member_id"] if order and order["paid_at"] else "none that was paid"
                if owner != claim["member_id"]:
                    yield difference(
                        f"{subject}: the order that earned it", POSTGRES, claim["member_id"], owner
                    )
            if benefit["newly_joined_s"]:
                yield from _check_joined(subject, claim, benefit)
            if benefit["needs"] != "join":
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


def _check_joined(subject: str, claim: Row, benefit: Row) -> Found:
    """A claim for having newly joined has its member's own plan, and goes when that is given back."""
    if claim["joined_member"] != claim["member_id"]:
        owner = claim["joined_member"] or "none that was paid"
        yield difference(f"{subject}: the plan that earned it", POSTGRES, claim["member_id"], owner)
        return
    is_kept = claim["state"] == "confirmed"
    if is_kept and claim["joined_state"] not in PAID:
        yield difference(f"{subject}: its state", POSTGRES, "recalled or deducted", claim["state"])
    # One that an order earned too goes with the order as well.
    if not is_kept and claim["joined_state"] in PAID and benefit["needs"] != "order":
        yield difference(f"{subject}: its state", POSTGRES, "confirmed", claim["state"])


def _check_misses(books: Books) -> Found:
    """A payment that brought the plan without the gift is one that was accepted and has no rank in that benefit."""
    accepted = {row["id"] for row in books.rows["payments"] if row["outcome"] == "accepted"}
    ranked = {(row["payment_id"], row["benefit_id"]): row["rank"] for row in books.rows["claims"]}
    for row in books.rows["misses"]:
        subject = f"payment {row['payment_id']} that missed benefit {row['benefit_id']}"
        if row["payment_id"] not in accepted:
            yield difference(subject, POSTGRES, "an accepted payment of this show", "none")
        rank = ranked.get((row["payment_id"], row["benefit_id"]))
        if rank is not None:
            yield difference(f"{subject}: its rank", POSTGRES, "none", rank)


def _check_grants(books: Books) -> Found:
    """What each claim brought is booked where it belongs, and is taken back exactly when it was recalled."""
    claims = books.by("claims", "benefit_id")
    grants = {row["claim_id"]: row for row in books.rows["grants"]}
    for benefit in books.rows["benefits"]:
        brings = benefit["coupon_rule"] or benefit["points"] or benefit["products"] or benefit["cap_fen"]
        for claim in claims[benefit["id"]]:
            subject = f"{_benefit_name(benefit)} rank {claim['rank']}"
            grant = grants.get(claim["id"])
            if grant is None or not brings:
                if (grant is None) == bool(brings):
                    yield difference(
                        f"{subject}: what it brings",
                        POSTGRES,
                        benefit["what"] if brings else "nothing",
                        grant["what"] if grant else "nothing",
                    )
                continue
            is_back = claim["state"] == "recalled" and grant["what"] != "free_order"
            if is_back != (grant["undone_at"] is not None):
                yield difference(
                    f"{subject}: what it brought",
                    POSTGRES,
                    "taken back" if is_back else "given",
                    "given" if is_back else "taken back",
                )
            booked: dict[str, tuple[object, object]] = {
                "points": (0 if is_back else benefit["points"], grant["points_booked"]),
                "money of the order": (grant["amount_fen"], grant["sent_fen"]),
            }
            if grant["what"] == "coupon" and not is_back and grant["coupon_state"] in (None, "void"):
                booked["coupon"] = "in its owner's hands", grant["coupon_state"] or "none"
            if grant["what"] == "coupon" and is_back and grant["coupon_state"] == "free":
                booked["coupon"] = "void", "free"
            for name, (expected, found) in booked.items():
                if expected != found:
                    yield difference(f"{subject}: {name}", POSTGRES, expected, found)


def _check_guards(books: Books) -> Found:
    """What a piece costs is what its terms say; what was granted was granted by another, and used in time."""
    for row in books.rows["benefit_costs"]:
        if row["piece_fen"] != row["most_fen"]:
            subject = f"benefit {row['benefit_id']}: cost of a piece in fen"
            yield difference(subject, POSTGRES, f"{row['most_fen']} (its terms)", row["piece_fen"])
    for row in books.rows["approvals"]:
        subject = f"approval {row['id']}"
        if row["state"] != "asked" and row["decided_by"] in (None, row["asked_by"]):
            yield difference(f"{subject}: who decided", POSTGRES, "a second person", row["decided_by"])
        if row["used_at"] is not None and not row["decided_at"] <= row["used_at"] <= row["expires_at"]:
            yield difference(f"{subject}: when it was used", POSTGRES, "while it held", row["used_at"])


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
    plan_refunds = {row["order_id"]: row for row in books.rows["plan_refunds"]}
    for order in books.rows["orders"]:
        subject = f"order {order['id']}"
        goods = sum(line["line_fen"] for line in lines[order["id"]])
        if order["kind"] == "goods" and goods != order["goods_fen"]:
            yield difference(f"{subject}: goods in fen", POSTGRES, f"{goods} (its lines)", order["goods_fen"])
        accepted = [row for row in payments[order["id"]] if row["outcome"] == "accepted"]
        is_paid = order["paid_at"] is not None
        # Of nothing, no money comes: such an order is paid by being placed.
        if (is_paid and order["total_fen"] > 0) != bool(accepted) or len(accepted) > 1:
            yield difference(f"{subject}: accepted payments", POSTGRES, int(is_paid), len(accepted))
            continue
        if is_paid != (order["state"] in (*PAID, "refunded")):
            expected = "paid or refunded" if is_paid else "cancelled or expired"
            yield difference(f"{subject}: state", POSTGRES, expected, order["state"])
        for payment in accepted:
            back = sum(row["amount_fen"] for row in returns[payment["id"]])
            bill = plan_refunds.get(order["id"])
            due = payment["amount_fen"] - (0 if bill is None else bill["fee_fen"] - bill["payable_fen"])
            if order["state"] == "refunded" and back != due:
                yield difference(f"{subject}: sent back in fen", POSTGRES, due, back)


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


def _check_refunds(books: Books) -> Found:
    """No piece, fen or point went back twice; each cause sent the money its lines say, and its points."""
    payments = {row["order_id"]: row for row in books.rows["payments"] if row["outcome"] == "accepted"}
    returns = {(row["payment_id"], row["reason"]): row["amount_fen"] for row in books.rows["payment_returns"]}
    entries = books.by("points", "cause")
    refunds = books.by("refunds", "order_id")
    for order in books.rows["orders"]:
        rows = refunds[order["id"]]
        if not rows:
            continue
        subject = f"refunds of order {order['id']}"
        lines: dict[int, Counter[str]] = defaultdict(Counter)
        causes: Counter[str] = Counter()
        for row in rows:
            lines[row["position"]].update({name: row[name] for name in ("quantity", "money_fen", "points")})
            causes[row["cause"]] += row["money_fen"]
            bound = {
                "quantity": row["bought"] or 0,
                "money_fen": order["freight_fen"] if row["position"] == 0 else row["paid_fen"],
                "points": row["points_paid"] or 0,
            }
            for name, most in bound.items():
                if lines[row["position"]][name] > most:
                    where = f"{subject}: line {row['position']}, {name}"
                    yield difference(where, POSTGRES, f"at most {most}", lines[row["position"]][name])
        payment = payments.get(order["id"])
        for cause, money_fen in causes.items():
            reason = cause if cause == "refund" else f"part:{cause}"
            sent = 0 if payment is None else returns.get((payment["id"], reason), 0)
            if sent != money_fen:
                yield difference(f"{subject}: {cause} in fen", POSTGRES, money_fen, sent)
        booked = {
            kind: sum(row["amount"] for row in entries[f"order:{order['id']}"] if row["kind"] == kind)
            for kind in ("restore", "reverse")
        }
        booked["restore"] -= sum(
            row["amount"]
            for row in entries[f"order:{order['id']}"]
            if row["kind"] == "restore" and row["part"] in (ENDED, LOWERED)
        )
        restored = sum(row["points"] for row in rows)
        if booked["restore"] != restored:
            yield difference(f"{subject}: points restored", POSTGRES, restored, booked["restore"])
        taken = sum(row["earned"] for row in rows)
        if order["state"] != "refunded" and -booked["reverse"] != taken:
            yield difference(f"{subject}: points taken back", POSTGRES, taken, -booked["reverse"])
    for case in books.rows["cases"]:
        back = sum(
            row["money_fen"] for row in refunds[case["order_id"]] if row["cause"] == f"case:{case['id']}"
        )
        if (case["amount_fen"] or 0) != back:
            yield difference(f"case {case['id']}: in fen", POSTGRES, back, case["amount_fen"] or 0)


def _check_parcels(books: Books) -> Found:
    """An order of goods is fulfilled exactly when a parcel of it was sent."""
    sent = {row["order_id"] for row in books.rows["parcels"] if row["case_id"] is None}
    for order in books.rows["orders"]:
        if order["kind"] == "goods" and order["state"] in PAID:
            expected = "fulfilled" if order["id"] in sent else "paid"
            if order["state"] != expected:
                yield difference(f"parcels of order {order['id']}", POSTGRES, expected, order["state"])


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
    lines = books.by("order_lines", "order_id")
    for order in books.rows["orders"]:
        earned: dict[str, int] = {}
        net: Counter[str] = Counter()
        for entry in entries[f"order:{order['id']}"]:
            if entry["kind"] not in ("earn", "reverse"):
                continue
            if entry["kind"] == "earn":
                earned[entry["reason"]] = entry["amount"]
            net[entry["lot_id"]] += entry["amount"]
            if entry["member_id"] != order["member_id"]:
                yield difference(
                    f"points of order {order['id']}: whose", POSTGRES, order["member_id"], entry["member_id"]
                )
        paid: Counter[ProductId] = Counter()
        for line in lines[order["id"]]:
            paid[line["product_id"]] += line["line_fen"] - line["coupon_fen"] - line["points_fen"]
        held = msgspec.convert(order["points_campaigns"], list[Holding])
        expected = (
            lots_for_goods(sum(paid.values()), order["points_bonus_percent"], *bases(held, paid))
            if order["kind"] == "goods" and order["paid_at"] is not None
            else {}
        )
        for reason in sorted(expected.keys() | earned.keys()):
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


def _check_discounts(books: Books) -> Found:
    """What coupons and points took off is on the lines, is spent, and is back where the order came to nothing."""
    lines = books.by("order_lines", "order_id")
    coupons = books.by("order_coupons", "order_id")
    entries = books.by("points", "cause")
    refunds = books.by("refunds", "order_id")
    for order in books.rows["orders"]:
        subject = f"order {order['id']}"
        for name in ("coupon_fen", "points_fen"):
            on_lines = sum(line[name] for line in lines[order["id"]])
            if on_lines != order[name]:
                yield difference(f"{subject}: {name}", POSTGRES, f"{on_lines} (its lines)", order[name])
        off_fen = sum(row["off_fen"] for row in coupons[order["id"]] if row["kind"] != "freight")
        if off_fen != order["coupon_fen"]:
            yield difference(f"{subject}: taken off by coupons", POSTGRES, order["coupon_fen"], off_fen)
        stands = order["state"] in ("placed", *PAID)
        spent = -sum(
            row["amount"] for row in entries[f"order:{order['id']}"] if row["kind"] in ("spend", "restore")
        )
        back = sum(row["points"] for row in refunds[order["id"]])
        due = order["points_fen"] - back if stands else 0
        if spent != due:
            yield difference(f"{subject}: points spent", POSTGRES, due, spent)
        state = "held" if order["state"] == "placed" else "used"
        for row in coupons[order["id"]]:
            name = f"{subject}: coupon {row['coupon_id']}"
            if row["member_id"] != order["member_id"]:
                yield difference(f"{name}: whose", POSTGRES, order["member_id"], row["member_id"])
            has_it = row["had_by"] == order["id"]
            if stands and not (has_it and row["state"] == state):
                yield difference(name, POSTGRES, f"{state} by it", row["state"])
            elif not stands and has_it:
                yield difference(name, POSTGRES, "given back", row["state"])


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


def _check_pieces(books: Books) -> Found:
    """What an order took is what its lines say, bundles as their parts; all of it while it is paid, and nothing
    once it ended unpaid."""
    parts = books.by("bundle_parts", "bundle_id")
    pieces = books.by("order_pieces", "order_id")
    lines = books.by("order_lines", "order_id")
    for order in books.rows["orders"]:
        subject = f"pieces of order {order['id']}"
        wanted: Counter[str] = Counter()
        for line in lines[order["id"]]:
            if line["kind"] != "goods":
                continue
            for part in parts[line["product_id"]] or [{"part_id": line["product_id"], "quantity": 1}]:
                wanted[part["part_id"]] += part["quantity"] * line["quantity"]
        written: Counter[str] = Counter()
        for row in pieces[order["id"]]:
            written[row["product_id"]] += row["quantity"]
            is_taken = row["state"] == "taken"
            if order["state"] != "placed" and is_taken != (order["paid_at"] is not None):
                expected = "not taken" if is_taken else "taken"
                yield difference(f"{subject}: {row['product_id']}", POSTGRES, expected, row["state"])
        for product in sorted(wanted.keys() | written.keys()):
            if wanted[product] != written[product]:
                yield difference(f"{subject}: {product}", POSTGRES, wanted[product], written[product])


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
        if benefit["needs"] != "join":
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
    return in_ms(datetime.fromisoformat(at))
