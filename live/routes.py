"""The route table: every address of the HTTP API, who may call it, what it takes and gives, and refuses.

The API, its checks and its description are made of this one table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute

from chat.comments import Posted
from chat.polls import Poll, Tally
from commerce.after_sales import PHOTO_BYTES_MAX, Case, CaseInput
from commerce.approvals import Approval
from commerce.benefit_terms import Benefit, BenefitInput
from commerce.budgets import Budget
from commerce.claim_book import Claim
from commerce.costs import ShowCosts
from commerce.coupons import Coupon, CouponRule, CouponRuleInput, CouponRulePatch, TillUse
from commerce.incidents import Incident
from commerce.offers import Offer
from commerce.orders import Order, Placed
from commerce.payments import PaymentRow
from commerce.plan_refunds import Bill
from commerce.products import PriceEntry, Product, ProductInput, ProductPatch
from commerce.quotes import Quote
from commerce.receipts import HeldReceipt, Link
from commerce.refunds import Refunded
from commerce.stock import StockEntry
from live import handlers_after_sales as after
from live import handlers_coupons as coupons
from live import handlers_gifts as gifts
from live import handlers_guards as guards
from live import handlers_receipts as receipts
from live import handlers_service as service
from live import handlers_shop as shop
from live import handlers_shows as shows
from live import handlers_staff as staff
from live import handlers_viewer as viewer
from live import webhooks
from live.asyncapi import asyncapi
from live.cues import Cue
from live.http import Door, PageQuery, Route, Service
from live.openapi import openapi
from live.report import EndCard, LiveNumbers
from live.rooms import Room, RoomInput, RoomPatch
from live.shows import Show, ShowInput, ShowPatch
from membership.addresses import Address, AddressInput
from membership.audit import Act
from membership.campaigns import Campaign, CampaignInput
from membership.page import Page
from membership.plans import Plan, PlanInput, Term
from membership.staff import ApiKey, StaffAccount
from membership.tags import Tag

if TYPE_CHECKING:
    from live.parts import Parts


def _r(method: Any, path: str, handler: Any, who: Any, tag: str, summary: str, **more: Any) -> Route:
    refusals = tuple(more.pop("refusals", "").split())
    return Route(
        method=method,
        path=path,
        handler=handler,
        who=who,
        tag=tag,
        summary=summary,
        refusals=refusals,
        **more,
    )


TABLE: Final[tuple[Route, ...]] = (
    # -- signing in
    _r("POST", "/v1/sign-in/codes", viewer.send_code, "public", "sign-in", "Send a sign-in code",
       body=viewer.CodeRequest, answer=viewer.CodeSent, status=202, keeps_reply=False,
       refusals="invalid_phone rate_limited forbidden"),
    _r("POST", "/v1/sign-in", viewer.sign_in, "public", "sign-in", "Sign in by phone and code",
       body=viewer.SignInBody, answer=viewer.SignedIn, keeps_reply=False,
       refusals="invalid_phone invalid_nickname wrong_code code_expired rate_limited not_found"),
    _r("POST", "/v1/sign-out", viewer.sign_out, "public", "sign-in", "End this browser's session",
       keeps_reply=False),
    _r("POST", "/v1/staff/sign-in", staff.staff_sign_in, "public", "sign-in",
       "Sign in staff by a one-time link", body=staff.StaffSignIn, answer=staff.StaffSignedIn,
       keeps_reply=False, refusals="link_used link_expired rate_limited forbidden"),
    _r("POST", "/v1/staff/sign-out", staff.staff_sign_out, "public", "sign-in",
       "End this browser's staff session", keeps_reply=False),
    # -- me
    _r("GET", "/v1/me", viewer.read_me, "viewer", "me", "Who one is", answer=viewer.Me),
    _r("PATCH", "/v1/me", viewer.rename_me, "viewer", "me", "Change one's nickname", body=viewer.Renaming,
       answer=viewer.Me, refusals="invalid_nickname"),
    _r("PUT", "/v1/me/phone", viewer.change_phone, "viewer", "me", "Move to another phone",
       body=viewer.PhoneChange, answer=viewer.Me, keeps_reply=False,
       refusals="invalid_phone wrong_code code_expired phone_taken rate_limited"),
    _r("GET", "/v1/me/points", viewer.read_points, "viewer", "me", "One's points and their entries",
       query=PageQuery, answer=viewer.PointsPage),
    _r("GET", "/v1/plans", viewer.list_plans, "public", "me", "The plans on sale",
       query=viewer.PlansQuery, answer=Page[Plan], prefers_staff=True),
    _r("POST", "/v1/me/trial", viewer.start_trial, "viewer", "me", "Start a trial", body=viewer.TrialBody,
       answer=Term, status=201, refusals="trial_used already_member not_eligible not_found"),
    _r("POST", "/v1/me/joins", viewer.join_plan, "viewer", "me", "Join: order a plan and start its payment",
       body=viewer.JoinBody, answer=viewer.Joining, status=201, own_key=True,
       refusals="not_found key_reused limit_reached closed not_live paused"),
    _r("GET", "/v1/me/orders", viewer.list_my_orders, "viewer", "me", "One's orders", query=PageQuery,
       answer=Page[Order]),
    _r("GET", "/v1/me/orders/{order}", viewer.read_my_order, "viewer", "me", "One of one's orders",
       answer=Order),
    _r("POST", "/v1/me/orders/{order}/payment", viewer.start_payment, "viewer", "me",
       "Start or resume the payment", body=viewer.PaymentBody, answer=viewer.PaymentPageAnswer,
       keeps_reply=False, refusals="closed"),
    _r("POST", "/v1/me/orders/{order}/cancel", viewer.cancel_my_order, "viewer", "me",
       "Cancel an unpaid order", answer=Order, refusals="closed"),
    _r("POST", "/v1/me/orders/{order}/refund", viewer.refund_my_order, "viewer", "me",
       "Take the money back where the gift was missed", answer=Order,
       refusals="closed not_paid already_refunded"),
    _r("POST", "/v1/me/orders/{order}/cases", after.open_case, "viewer", "me",
       "Ask for something about an order", body=CaseInput, answer=Case, status=201,
       refusals="case_open already_refunded not_paid limit_reached"),
    _r("GET", "/v1/me/cases", after.list_my_cases, "viewer", "me", "What one has asked for", query=PageQuery,
       answer=Page[Case]),
    _r("POST", "/v1/me/cases/{case}/photos", after.add_case_photo, "viewer", "me", "Add a photo to a case",
       answer=Case, status=201, takes=("image/jpeg", "image/png", "image/webp"),
       body_bytes_max=PHOTO_BYTES_MAX, keeps_reply=False, refusals="closed limit_reached"),
    _r("GET", "/v1/me/cases/{case}/photos/{photo}", after.read_my_photo, "viewer", "me", "A photo of a case",
       answer=bytes, media="image/jpeg, image/png, image/webp"),
    _r("POST", "/v1/me/cases/{case}/withdraw", after.withdraw_case, "viewer", "me", "Take a case back",
       answer=Case, refusals="closed"),
    _r("GET", "/v1/refund-rule", after.read_refund_rule, "public", "me", "How a plan may be given back",
       answer=after.RefundRule),
    _r("GET", "/v1/me/plan/refund", after.read_plan_bill, "viewer", "me",
       "What giving the plan back would bring", answer=Bill, refusals="not_found"),
    _r("POST", "/v1/me/plan/refund", after.refund_my_plan, "viewer", "me", "Give the plan back",
       body=after.PlanBack, answer=Bill,
       refusals="not_found price_changed not_eligible already_refunded not_paid"),
    _r("POST", "/v1/me/plan/cancel", after.cancel_my_plan, "viewer", "me", "Cancel the plan for its end",
       answer=after.PlanEnd, refusals="not_found"),
    _r("DELETE", "/v1/me/plan/cancel", after.undo_cancel_plan, "viewer", "me", "Keep the plan after all",
       answer=after.PlanEnd, refusals="not_found"),
    _r("GET", "/v1/me/coupons", coupons.list_my_coupons, "viewer", "me", "One's coupons", query=PageQuery,
       answer=Page[coupons.MyCoupon]),
    _r("GET", "/v1/me/gifts", gifts.list_my_gifts, "viewer", "me", "The gifts of one's plan, period by period",
       answer=gifts.MyGifts),
    _r("POST", "/v1/me/gifts/{gift}/claim", gifts.claim_gift, "viewer", "me", "Take the gift of this period",
       body=gifts.GiftClaimBody, answer=gifts.MyGift, refusals="not_eligible not_found"),
    _r("PUT", "/v1/me/birthday", gifts.set_birthday, "viewer", "me", "Tell one's birthday, once",
       body=gifts.Birthday, answer=gifts.BirthdayKept, refusals="already_decided"),
    _r("GET", "/v1/me/savings", coupons.read_my_savings, "viewer", "me", "What one's plan has saved",
       answer=coupons.MySavings),
    _r("GET", "/v1/me/benefits", viewer.list_my_benefits, "viewer", "me", "What one has won",
       answer=Page[viewer.MyBenefit]),
    _r("GET", "/v1/me/receipts", receipts.list_my_receipts, "viewer", "me",
       "The signed receipts of what one has won", query=PageQuery, answer=Page[HeldReceipt]),
    _r("GET", "/v1/me/addresses", viewer.list_addresses, "viewer", "me", "One's delivery addresses",
       answer=Page[Address]),
    _r("POST", "/v1/me/addresses", viewer.add_address, "viewer", "me", "Keep an address", body=AddressInput,
       answer=Address, status=201, refusals="invalid_address invalid_phone limit_reached"),
    _r("DELETE", "/v1/me/addresses/{address}", viewer.remove_address, "viewer", "me", "Forget an address"),
    _r("GET", "/v1/me/tags", viewer.list_my_tags, "viewer", "me", "What was learnt about one",
       answer=Page[viewer.MyTag]),
    _r("DELETE", "/v1/me/tags/{tag}", viewer.delete_my_tag, "viewer", "me", "Strike out a tag of one's own"),
    # -- rooms and shows
    _r("GET", "/v1/rooms", shows.list_rooms, "staff", "shows", "All rooms", answer=Page[Room]),
    _r("POST", "/v1/rooms", shows.create_room, "room.write", "shows", "Make a room", body=RoomInput,
       answer=Room, status=201, refusals="slug_taken"),
    _r("GET", "/v1/rooms/{room}", shows.read_room, "staff", "shows", "One room", answer=Room),
    _r("PATCH", "/v1/rooms/{room}", shows.update_room, "room.write", "shows", "Change a room", body=RoomPatch,
       answer=Room),
    _r("GET", "/v1/shows", shows.list_shows, "staff", "shows", "Shows, latest start first",
       query=shows.ShowsQuery, answer=Page[Show]),
    _r("POST", "/v1/shows", shows.create_show, "room.write", "shows", "Schedule a show", body=ShowInput,
       answer=Show, status=201, refusals="not_found"),
    _r("GET", "/v1/shows/{show}", shows.read_show, "public", "shows", "The show's card",
       answer=shows.ShowView, prefers_staff=True),
    _r("PATCH", "/v1/shows/{show}", shows.update_show, "room.write", "shows", "Change a show", body=ShowPatch,
       answer=Show, refusals="wrong_status"),
    _r("GET", "/v1/shows/{show}/calendar.ics", shows.read_calendar, "public", "shows",
       "Calendar file: remind me", answer=str, media="text/calendar"),
    _r("POST", "/v1/shows/{show}/open", shows.open_show, "show.run", "shows", "Open the waiting room",
       answer=Show, refusals="wrong_status"),
    _r("POST", "/v1/shows/{show}/start", shows.start_show, "show.run", "shows", "Go on air", answer=Show,
       refusals="wrong_status room_busy"),
    _r("POST", "/v1/shows/{show}/pause", shows.pause_show, "show.run", "shows", "Pause", answer=Show,
       refusals="wrong_status"),
    _r("POST", "/v1/shows/{show}/resume", shows.resume_show, "show.run", "shows", "Go on", answer=Show,
       refusals="wrong_status"),
    _r("POST", "/v1/shows/{show}/end", shows.end_show, "show.run", "shows",
       "End, at once or after a last call", body=shows.EndBody, answer=Show, refusals="wrong_status"),
    _r("POST", "/v1/shows/{show}/previews", shows.create_preview, "staff", "shows", "A token for a preview",
       body=shows.PreviewBody, answer=shows.PreviewToken, keeps_reply=False),
    # -- cues
    _r("GET", "/v1/shows/{show}/cues", shows.list_cues, "staff", "cues", "The prepared cues",
       answer=Page[Cue]),
    _r("PUT", "/v1/shows/{show}/cues", shows.put_cues, "staff", "cues", "Set the list of cues",
       body=shows.CuesBody, answer=Page[Cue], refusals="wrong_status cue_running cue_done no_promo"),
    _r("POST", "/v1/shows/{show}/cues/{cue}/run", shows.run_cue, "staff", "cues", "Run a cue", answer=Cue,
       refusals="wrong_status cue_running cue_done poll_open already_open "
       "benefit_open not_live no_promo bad_request too_many_audiences "
       "needs_approval over_budget paused payments_down rate_limited"),
    _r("POST", "/v1/shows/{show}/cues/{cue}/stop", shows.stop_cue, "staff", "cues", "Stop a cue", answer=Cue,
       refusals="not_live window_promised"),
    # -- talk
    _r("POST", "/v1/shows/{show}/comments", staff.post_comment, "staff", "talk", "Say a line as host",
       body=staff.CommentBody, answer=Posted, status=201, refusals="not_live rate_limited muted"),
    _r("POST", "/v1/shows/{show}/comments/{seq}/hide", staff.hide_comment, "chat.moderate", "talk",
       "Hide a comment", answer=staff.Done),
    _r("POST", "/v1/shows/{show}/comments/{seq}/pin", staff.pin_comment, "chat.moderate", "talk",
       "Pin a comment", answer=staff.Done, refusals="not_live"),
    _r("DELETE", "/v1/shows/{show}/pinned-comment", staff.unpin_comment, "chat.moderate", "talk",
       "Let the pinned comment go", answer=staff.Done, refusals="not_live"),
    _r("POST", "/v1/shows/{show}/mutes", staff.mute_viewer, "chat.moderate", "talk", "Mute a viewer",
       body=staff.MuteBody, answer=staff.Muted),
    _r("DELETE", "/v1/shows/{show}/mutes", staff.unmute_viewer, "chat.moderate", "talk",
       "Let a viewer speak again", body=staff.UnmuteBody),
    _r("PUT", "/v1/shows/{show}/announcement", staff.set_announcement, "show.run", "talk",
       "Set or clear the announcement bar", body=staff.AnnouncementBody, refusals="not_live"),
    _r("GET", "/v1/shows/{show}/polls", staff.list_polls, "staff", "talk", "The show's polls",
       answer=Page[Poll]),
    _r("POST", "/v1/shows/{show}/polls", staff.open_poll, "staff", "talk", "Open a poll", body=staff.PollBody,
       answer=Poll, status=201, refusals="poll_open not_live too_many_audiences"),
    _r("POST", "/v1/polls/{poll}/close", staff.close_poll, "staff", "talk", "Close a poll", answer=Tally,
       refusals="not_live"),
    # -- trade
    _r("GET", "/v1/shows/{show}/offers", shows.list_offers, "staff", "trade", "The show's offers",
       query=PageQuery, answer=Page[Offer]),
    _r("POST", "/v1/shows/{show}/offers", shows.open_offer, "offer.run", "trade", "Put a product on offer",
       body=shows.OfferBody, answer=Offer, status=201,
       refusals="no_promo already_open not_live too_many_audiences "
       "needs_approval paused payments_down rate_limited"),
    _r("POST", "/v1/offers/{offer}/close", shows.close_offer, "offer.run", "trade", "End an offer",
       answer=Offer),
    _r("GET", "/v1/shows/{show}/benefits", staff.list_benefits, "staff", "trade", "The show's benefits",
       answer=Page[Benefit]),
    _r("POST", "/v1/shows/{show}/benefits", staff.open_benefit, "offer.run", "trade", "Open a benefit",
       body=BenefitInput, answer=Benefit, status=201,
       refusals="benefit_open not_live not_found too_many_audiences no_promo "
       "needs_approval over_budget paused rate_limited"),
    _r("GET", "/v1/benefits/{benefit}", staff.read_benefit, "staff", "trade", "A benefit with its numbers",
       answer=staff.BenefitCard),
    _r("PATCH", "/v1/benefits/{benefit}", staff.raise_quota, "offer.run", "trade", "Raise a benefit's quota",
       body=staff.QuotaBody, answer=Benefit, refusals="closed needs_approval over_budget rate_limited"),
    _r("GET", "/v1/benefits/{benefit}/claims", staff.list_winners, "member.read", "trade",
       "Who has it, by rank", query=staff.WinnersQuery, answer=Page[Claim]),
    _r("GET", "/v1/benefits/{benefit}/ranks", receipts.list_ranks, "public", "trade",
       "Every rank with its link of the chain, for anyone to recompute", query=receipts.RanksQuery,
       answer=Page[Link], prefers_staff=True),
    _r("GET", "/v1/receipts/key", receipts.read_key, "public", "trade",
       "The public key by which receipts are checked", answer=receipts.PublicKey),
    _r("POST", "/v1/receipts/check", receipts.check, "public", "trade", "Check a receipt",
       body=receipts.ReceiptBody, answer=receipts.Checked, keeps_reply=False),
    _r("POST", "/v1/benefits/{benefit}/pause", staff.pause_benefit, "offer.run", "trade", "Pause a benefit",
       body=staff.PauseBody, answer=Benefit, refusals="closed"),
    _r("POST", "/v1/benefits/{benefit}/resume", staff.resume_benefit, "offer.run", "trade",
       "Go on with a benefit", answer=Benefit, refusals="closed"),
    _r("POST", "/v1/benefits/{benefit}/close", staff.close_benefit, "offer.run", "trade", "Close a benefit",
       answer=Benefit, refusals="window_promised"),
    _r("POST", "/v1/shows/{show}/quotes", viewer.create_quote, "public", "trade", "A signed price promise",
       body=viewer.QuoteBody, answer=Quote, keeps_reply=False,
       refusals="unauthenticated closed not_eligible members_only not_covered not_found"),
    _r("POST", "/v1/shows/{show}/orders", viewer.place_order, "viewer", "trade", "Order at the quoted price",
       body=viewer.OrderBody, answer=Placed, status=201, own_key=True,
       refusals="not_covered price_changed key_reused sold_out reserved_out limit_reached "
       "closed not_eligible members_only not_live paused coupon_used not_enough_points"),
    _r("GET", "/v1/coupon-rules", coupons.list_coupon_rules, "staff", "trade", "Rules of coupons",
       query=PageQuery, answer=Page[CouponRule]),
    _r("POST", "/v1/coupon-rules", coupons.create_coupon_rule, "catalog.write", "trade",
       "Write a rule of coupons", body=CouponRuleInput, answer=CouponRule, status=201,
       refusals="no_promo needs_approval rate_limited"),
    _r("GET", "/v1/coupon-rules/{rule}", coupons.read_coupon_rule, "staff", "trade", "A rule of coupons",
       answer=CouponRule),
    _r("PATCH", "/v1/coupon-rules/{rule}", coupons.update_coupon_rule, "catalog.write", "trade",
       "Change a rule of coupons", body=CouponRulePatch, answer=CouponRule,
       refusals="no_promo needs_approval rate_limited"),
    _r("POST", "/v1/coupon-rules/{rule}/grants", coupons.grant_coupons, "member.write", "trade",
       "Give members a coupon", body=coupons.GrantBody, answer=coupons.Grants,
       refusals="needs_approval rate_limited"),
    _r("POST", "/v1/coupons/{coupon}/use", coupons.use_coupon_at_till, "member.write", "trade",
       "Use a coupon at a till", body=coupons.TillBody, answer=TillUse,
       refusals="coupon_used not_eligible key_reused"),
    _r("DELETE", "/v1/coupons/{coupon}/use", coupons.undo_coupon_at_till, "member.write", "trade",
       "Undo a till's use of a coupon", body=coupons.TillUndo),
    _r("DELETE", "/v1/coupons/{coupon}", coupons.void_coupon, "member.write", "trade", "Take a coupon back"),
    _r("GET", "/v1/points-campaigns", coupons.list_campaigns, "staff", "trade", "Campaigns of points",
       query=PageQuery, answer=Page[Campaign]),
    _r("POST", "/v1/points-campaigns", coupons.create_campaign, "catalog.write", "trade",
       "Give more points for a time", body=CampaignInput, answer=Campaign, status=201,
       refusals="name_taken over_rebate_cap"),
    _r("POST", "/v1/points-campaigns/{campaign}/end", coupons.end_campaign, "catalog.write", "trade",
       "End a campaign of points", answer=Campaign),
    _r("GET", "/v1/orders", shop.list_orders, "member.read", "trade", "Every order, in the order of placing",
       query=shop.OrdersQuery, answer=Page[Order]),
    _r("GET", "/v1/orders/{order}", shop.read_order, "member.read", "trade", "An order with its payments",
       answer=shop.PaidOrder),
    _r("POST", "/v1/orders/{order}/refund", shop.refund_order, "member.write", "trade", "Refund a paid order",
       answer=Order, refusals="not_paid already_refunded closed"),
    _r("POST", "/v1/orders/{order}/refunds", after.refund_lines, "member.write", "trade",
       "Refund part of a paid order", body=after.RefundBody, answer=Refunded,
       refusals="not_paid already_refunded"),
    _r("GET", "/v1/cases", after.list_cases, "member.read", "trade", "What buyers ask for, oldest first",
       query=after.CasesQuery, answer=Page[Case]),
    _r("GET", "/v1/cases/{case}", after.read_case, "member.read", "trade", "One case", answer=Case),
    _r("GET", "/v1/cases/{case}/refund", after.read_case_refund, "member.write", "trade",
       "What a refund of a case would send back", answer=after.CaseRefund),
    _r("GET", "/v1/cases/{case}/photos/{photo}", after.read_case_photo, "member.read", "trade",
       "A photo of a case, for staff", answer=bytes, media="image/jpeg, image/png, image/webp"),
    _r("POST", "/v1/cases/{case}/decision", after.decide_case, "member.write", "trade",
       "Settle or decline a case", body=after.CaseDecision, answer=Case,
       refusals="closed already_refunded not_paid"),
    _r("GET", "/v1/fulfilment.csv", after.read_fulfilment, "member.read", "trade", "What is to be sent, as CSV",
       query=after.FulfilmentQuery, answer=str, media="text/csv"),
    _r("POST", "/v1/fulfilment", after.note_parcels, "member.write", "trade",
       "What was sent, with tracking numbers", body=after.ParcelsBody, answer=after.ParcelsAnswer),
    _r("GET", "/v1/freight", after.read_freight, "staff", "trade", "The freight template",
       answer=after.FreightAnswer),
    _r("PUT", "/v1/freight", after.put_freight, "catalog.write", "trade", "Set the freight template",
       body=after.FreightBody, answer=after.FreightAnswer),
    _r("GET", "/v1/odd-payments", shop.list_odd_payments, "member.read", "trade",
       "Payments that wait for a person", answer=Page[PaymentRow]),
    _r("POST", "/v1/odd-payments/{payment}/decision", shop.decide_odd_payment, "member.write", "trade",
       "Decide about such a payment", body=shop.DecisionBody, answer=PaymentRow, refusals="already_decided"),
    _r("GET", "/v1/products", shop.list_products, "staff", "trade", "Products", query=shop.ProductQuery,
       answer=Page[Product]),
    _r("POST", "/v1/products", shop.create_product, "catalog.write", "trade", "Add a product",
       body=ProductInput, answer=Product, status=201, refusals="sku_taken no_promo needs_approval rate_limited"),
    _r("GET", "/v1/products/{product}", shop.read_product, "staff", "trade", "A product with its price list",
       answer=shop.ProductCard),
    _r("PATCH", "/v1/products/{product}", shop.update_product, "catalog.write", "trade", "Change a product",
       body=ProductPatch, answer=Product, refusals="no_promo needs_approval rate_limited"),
    _r("PUT", "/v1/stock", shop.import_stock, "catalog.write", "trade", "Bring stocks up to date, row by row",
       body=shop.StockBody, answer=shop.StockAnswer, refusals="key_reused"),
    _r("GET", "/v1/stock-entries", shop.list_stock_entries, "staff", "trade",
       "The stock's ledger, newest first", query=shop.StockQuery, answer=Page[StockEntry]),
    _r("POST", "/v1/products/{product}/prices", shop.add_price, "catalog.write", "trade",
       "Add a line to the price list", body=shop.PriceBody, answer=PriceEntry, status=201,
       refusals="no_promo needs_approval rate_limited"),
    _r("DELETE", "/v1/prices/{price}", shop.end_price, "catalog.write", "trade",
       "End a line of a price list"),
    # -- guards
    _r("GET", "/v1/approvals", guards.list_approvals, "staff", "guards", "What waits for a second person",
       query=guards.ApprovalsQuery, answer=Page[Approval]),
    _r("GET", "/v1/approvals/{approval}", guards.read_approval, "staff", "guards", "One ask with its rules",
       answer=Approval),
    _r("POST", "/v1/approvals/{approval}/decision", guards.decide_approval, "approve", "guards",
       "Grant or decline what another asked for", body=guards.ApprovalBody, answer=Approval,
       refusals="already_decided closed"),
    _r("GET", "/v1/budgets", guards.list_budgets, "report.read", "guards", "The limits that bear on a show",
       query=guards.BudgetsQuery, answer=Page[Budget], refusals="not_found"),
    _r("PUT", "/v1/budgets", guards.set_budget, "approve", "guards", "Set a limit, or take it off",
       body=guards.BudgetBody, answer=Budget, refusals="not_found"),
    _r("GET", "/v1/shows/{show}/costs", guards.read_costs, "report.read", "guards", "The cost meter",
       answer=ShowCosts),
    _r("GET", "/v1/incident", guards.read_incident, "staff", "guards", "Whether selling is paused",
       answer=guards.IncidentNow),
    _r("POST", "/v1/incident", guards.begin_incident, "incident.run", "guards",
       "Pause everything that is sold or given", body=guards.IncidentBody, answer=Incident),
    _r("DELETE", "/v1/incident", guards.end_incident, "incident.run", "guards", "Go on with selling",
       answer=Incident, refusals="not_found"),
    # -- the shop's server
    _r("PUT", "/v1/members", shop.feed_members, "member.write", "shop", "Feed members in", body=shop.FeedBody,
       answer=shop.FeedAnswer),
    _r("POST", "/v1/tokens", shop.mint_token, "member.write", "shop", "A viewer token for a member",
       body=shop.MintBody, answer=shop.Minted, status=201, keeps_reply=False, refusals="not_found"),
    _r("POST", "/v1/plans", shop.create_plan, "catalog.write", "shop", "Put a plan on sale", body=PlanInput,
       answer=Plan, status=201, refusals="over_rebate_cap"),
    _r("PATCH", "/v1/plans/{plan}", shop.update_plan, "catalog.write", "shop",
       "Take a plan off sale, or put it back", body=shop.PlanPatch, answer=Plan,
       refusals="over_rebate_cap"),
    # -- members
    _r("GET", "/v1/members", shop.list_members, "member.read", "members", "Members, newest first",
       query=shop.MemberQuery, answer=Page[shop.MemberRow], refusals="invalid_phone"),
    _r("GET", "/v1/members/{member}", shop.read_member, "member.read", "members", "One member",
       answer=shop.MemberCard),
    _r("GET", "/v1/members/{member}/orders", shop.list_member_orders, "member.read", "members",
       "A member's orders", query=PageQuery, answer=Page[Order]),
    _r("GET", "/v1/members/{member}/coupons", coupons.list_member_coupons, "member.read", "members",
       "A member's coupons", query=PageQuery, answer=Page[Coupon]),
    _r("GET", "/v1/members/{member}/benefits", shop.list_member_benefits, "member.read", "members",
       "What a member has won", answer=Page[Claim]),
    _r("GET", "/v1/members/{member}/tags", shop.list_member_tags, "member.read", "members",
       "A member's tags with their evidence", answer=Page[Tag]),
    _r("GET", "/v1/shows/{show}/tags", staff.list_show_tags, "member.read", "members",
       "Tags that a show taught", query=PageQuery, answer=Page[Tag]),
    # -- reports
    _r("GET", "/v1/shows/{show}/live", shows.read_live_numbers, "report.read", "reports",
       "Viewers, comments, claims, sales now", answer=LiveNumbers),
    _r("GET", "/v1/shows/{show}/report", shows.read_report, "report.read", "reports", "The end card",
       answer=EndCard),
    _r("GET", "/v1/audit", staff.list_audit, "report.read", "reports", "The audit log",
       query=staff.AuditQuery, answer=Page[Act]),
    # -- accounts
    _r("GET", "/v1/staff/me", staff.read_staff_me, "staff", "accounts", "Who one is, as staff",
       answer=staff.StaffMe),
    _r("GET", "/v1/staff", staff.list_staff, "staff.write", "accounts", "Staff accounts",
       answer=Page[StaffAccount]),
    _r("POST", "/v1/staff", staff.create_staff, "staff.write", "accounts", "Make a staff account",
       body=staff.StaffInput, answer=StaffAccount, status=201, refusals="not_found"),
    _r("POST", "/v1/staff/{staff}/links", staff.create_staff_link, "staff.write", "accounts",
       "A one-time sign-in link", answer=staff.SignInLink, status=201, keeps_reply=False),
    _r("POST", "/v1/staff/{staff}/disable", staff.disable_staff, "staff.write", "accounts",
       "Shut a staff account", answer=StaffAccount),
    _r("GET", "/v1/api-keys", staff.list_api_keys, "staff.write", "accounts", "API keys",
       answer=Page[ApiKey]),
    _r("POST", "/v1/api-keys", staff.create_api_key, "staff.write", "accounts", "Make an API key",
       body=staff.KeyInput, answer=staff.KeyMade, status=201, keeps_reply=False),
    _r("DELETE", "/v1/api-keys/{key}", staff.revoke_api_key, "staff.write", "accounts", "End an API key"),
    # -- webhooks
    _r("POST", "/v1/payments/sandbox/webhook", webhooks.note_sandbox_payment, "public", "webhooks",
       "A payment succeeded at the sandbox", body=webhooks.PaymentNews, answer=webhooks.PaymentNoted,
       keeps_reply=False, signed=True, refusals="bad_signature not_found"),
    _r("POST", "/v1/payments/wechat/webhook", webhooks.note_wechat_payment, "public", "webhooks",
       "WeChat Pay tells of a payment or refund", body=webhooks.WechatNews, answer=webhooks.PaymentNoted,
       keeps_reply=False, signed=True, refusals="bad_signature not_found"),
    # -- service
    _r("GET", "/healthz", service.health, "public", "service", "The process answers", answer=service.Health),
    _r("GET", "/readyz", service.readiness, "public", "service", "The stores answer, too",
       answer=service.Health),
    _r("GET", "/metrics", service.metrics, "public", "service", "Prometheus' metrics of this process",
       answer=str, media="text/plain"),
    _r("GET", "/openapi.json", service.openapi_document, "public", "service", "This description",
       answer=dict[str, Any]),
    _r("GET", "/asyncapi.json", service.asyncapi_document, "public", "service",
       "The description of the socket", answer=dict[str, Any]),
    _r("GET", "/docs", service.docs_page, "public", "service", "Both descriptions, to be read", answer=str,
       media="text/html"),
)  # fmt: skip


def http_routes(
    parts: Parts,
    not_ready: Callable[[], str | None] | None = None,
    degraded: Callable[[], list[str]] | None = None,
) -> list[BaseRoute]:
    """The API for the app.

    `not_ready` says why no new work should come to this process, `degraded` what it gives up now.
    """
    version, server = service.version(), parts.settings.public_url or None
    told = Service(
        openapi=openapi(TABLE, version=version, server=server),
        asyncapi=asyncapi(version=version, server=server),
        metrics=parts.metrics,
        count_rate=parts.scripts.load_plain("live", "count_rate"),
        not_ready=not_ready or (lambda: None),
        degraded=degraded or list,
    )
    keep_reply = parts.scripts.load_plain("live", "keep_reply")
    by_path: dict[str, list[Route]] = defaultdict(list)
    for route in TABLE:
        by_path[route.path].append(route)
    doors: list[BaseRoute] = [
        StarletteRoute(path, Door(parts, routes, keep_reply, told), name=routes[0].name)
        for path, routes in by_path.items()
    ]
    doors.append(StarletteRoute("/v1/{rest:path}", Door(parts, [], keep_reply, told), name="nothing_here"))
    return doors
