"""Every part of the house, built once in `live/app.py` and handed down."""

from __future__ import annotations

from dataclasses import dataclass

import procrastinate
from redis.asyncio import Redis

from chat.comments import Comments
from chat.polls import Polls
from chat.reactions import Reactions
from chat.standings import Standings
from commerce.after_sales import AfterSales
from commerce.approvals import Approvals
from commerce.benefits import Benefits
from commerce.budgets import Budgets
from commerce.claims import Claims
from commerce.costs import Costs
from commerce.coupons import Coupons
from commerce.fulfilment import Fulfilment
from commerce.guards import Guards
from commerce.incidents import Incidents
from commerce.offers import Offers
from commerce.orders import Orders
from commerce.payments import PaymentProvider, Payments
from commerce.plan_refunds import PlanRefunds
from commerce.products import Products
from commerce.quotes import Quotes
from commerce.receipts import Receipts
from commerce.refunds import Refunds
from commerce.savings import SavingsMeter
from commerce.seats import Seats
from commerce.stock import Stock
from live.cues import Cues
from live.database import Database, Pool
from live.log import ShowLog
from live.lua import Scripts
from live.meter import Meter
from live.metrics import Metrics
from live.report import Report
from live.rooms import Rooms
from live.settings import Settings
from live.shows import Shows
from live.webhooks import RefusedWebhooks
from membership.addresses import Addresses
from membership.audience import ShowAudiences
from membership.audit import Audit
from membership.behaviour import Behaviour
from membership.campaigns import Campaigns
from membership.members import Members
from membership.notices import Notices
from membership.periodic_gifts import PeriodicGifts
from membership.plans import Plans
from membership.points import Points
from membership.sign_in import SignIn, Sms
from membership.staff import ApiKeys, Staff
from membership.tags import Tags
from membership.tokens import Tokens


@dataclass(frozen=True)
class Parts:
    settings: Settings
    metrics: Metrics
    redis: Redis
    pool: Pool
    database: Database
    scripts: Scripts
    audiences: ShowAudiences
    notices: Notices
    tokens: Tokens
    members: Members
    sign_in: SignIn
    sms: Sms
    addresses: Addresses
    plans: Plans
    points: Points
    behaviour: Behaviour
    tags: Tags
    staff: Staff
    api_keys: ApiKeys
    audit: Audit
    comments: Comments
    standings: Standings
    polls: Polls
    reactions: Reactions
    products: Products
    stock: Stock
    coupons: Coupons
    periodic_gifts: PeriodicGifts
    campaigns: Campaigns
    savings: SavingsMeter
    quotes: Quotes
    offers: Offers
    orders: Orders
    payments: Payments
    refunds: Refunds
    plan_refunds: PlanRefunds
    fulfilment: Fulfilment
    after_sales: AfterSales
    provider: PaymentProvider
    refused_webhooks: RefusedWebhooks
    seats: Seats
    benefits: Benefits
    claims: Claims
    receipts: Receipts
    approvals: Approvals
    budgets: Budgets
    costs: Costs
    incidents: Incidents
    guards: Guards
    meter: Meter
    rooms: Rooms
    shows: Shows
    cues: Cues
    report: Report
    show_log: ShowLog
    queue: procrastinate.App
