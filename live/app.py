"""The only place where parts are built and joined: engines' clients, every noun, the routes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from chat.comments import Comments
from chat.polls import PERSONAL_OF_BALLOTS, Polls
from chat.reactions import Reactions
from chat.standings import Standings
from commerce.after_sales import PERSONAL_OF_CASES, AfterSales
from commerce.approvals import Approvals
from commerce.benefits import Benefits
from commerce.budgets import Budgets
from commerce.claims import Claims
from commerce.costs import Costs
from commerce.coupons import Coupons
from commerce.fulfilment import Fulfilment
from commerce.grants import Grants
from commerce.guards import Guards
from commerce.incidents import Incidents
from commerce.offers import Offers
from commerce.orders import PERSONAL_OF_ORDERS, Orders
from commerce.payments import PaymentProvider, Payments
from commerce.plan_refunds import PlanRefunds
from commerce.prices import MemberDay
from commerce.products import Products
from commerce.quotes import Quotes
from commerce.receipts import Receipts
from commerce.refunds import Refunds
from commerce.sandbox import SandboxProvider
from commerce.savings import SavingsMeter
from commerce.seats import Seats
from commerce.stock import Stock
from live.cluster import NodeClients
from live.cues import Cues
from live.database import Database, make_pool, open_redis, open_tail_clients
from live.log import BLOCK_MS, ShowLog
from live.lua import Scripts
from live.meter import Meter
from live.metrics import Metrics
from live.pages import page_routes
from live.panel_pages import panel_routes
from live.parts import Parts
from live.queue import Deferred, make_queue
from live.report import Report
from live.rooms import Rooms
from live.routes import http_routes
from live.settings import Settings, wechat_keys
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
from membership.personal import PERSONAL
from membership.plans import Plans
from membership.points import Points
from membership.sign_in import SandboxSms, SignIn
from membership.staff import ApiKeys, Staff
from membership.tags import Tags
from membership.tokens import Tokens

if TYPE_CHECKING:
    from live.node import Node

STATIC = Path(__file__).parent / "static"


async def build_parts(settings: Settings, metrics: Metrics) -> Parts:
    """Every part, from its settings; clients are opened here and nowhere else."""
    redis = open_redis(settings.redis_url)
    pool = make_pool(settings.database_url, size_max=settings.pool_size)
    await pool.open(wait=True, timeout=10)
    database = Database(pool)
    queue = make_queue(settings.database_url)
    await queue.open_async()
    scripts = Scripts(redis)
    metrics.watch_scripts(scripts.counted)
    audiences = ShowAudiences(scripts)
    notices = Notices(redis)
    members = Members(
        notices, personal=(*PERSONAL, *PERSONAL_OF_BALLOTS, *PERSONAL_OF_ORDERS, *PERSONAL_OF_CASES)
    )
    plans = Plans(notices, settings.secret, timezone=settings.timezone)
    points = Points(notices, timezone=settings.timezone, months=settings.points_months)
    addresses = Addresses()
    approvals = Approvals()
    budgets = Budgets(
        timezone=settings.timezone,
        benefit_fen=settings.budget_benefit_fen,
        show_fen=settings.budget_show_fen,
        month_fen=settings.budget_month_fen,
    )
    costs = Costs(budgets)
    incidents = Incidents(scripts, notices)
    guards = Guards(
        approvals,
        budgets,
        incidents,
        provider=settings.payment_provider,
        approve_above_fen=settings.approve_above_fen,
        rebate_cap_percent=settings.rebate_cap_percent,
    )
    products = Products(guards)
    coupons = Coupons(notices, guards)
    campaigns = Campaigns()
    member_day = _member_day(settings)
    quotes = Quotes(
        settings.secret,
        products=products,
        coupons=coupons,
        points=points,
        plans=plans,
        campaigns=campaigns,
        currency=settings.currency,
        timezone=settings.timezone,
        member_day=member_day,
    )
    offers = Offers(scripts, audiences, products, member_day=member_day, guards=guards)
    grants = Grants(points, coupons)
    seats = Seats(scripts, notices, members.facts, database.transaction, grants)
    orders = Orders(
        scripts,
        quotes,
        plans,
        points,
        coupons,
        notices,
        addresses,
        seats,
        secret=settings.secret,
        guards=guards,
    )
    benefits = Benefits(scripts, audiences, notices, members.facts, grants, guards)
    comments = Comments(scripts, audiences)
    polls = Polls(scripts, audiences)
    provider = _provider(settings)
    payments = Payments(orders, plans, seats, provider, notices)
    stock = Stock()
    refunds = Refunds(payments, orders, points, stock)
    meter = Meter(scripts, costs, approvals, incidents, settings.payment_provider)
    rooms = Rooms()
    shows = Shows(scripts, database, comments, polls, offers, benefits, Deferred(queue).after_show, incidents)
    return Parts(
        settings=settings,
        metrics=metrics,
        redis=redis,
        pool=pool,
        database=database,
        scripts=scripts,
        audiences=audiences,
        notices=notices,
        tokens=Tokens(settings.secret),
        members=members,
        sign_in=SignIn(scripts, settings.secret),
        sms=SandboxSms(),
        addresses=addresses,
        plans=plans,
        points=points,
        behaviour=Behaviour(redis),
        tags=Tags(),
        staff=Staff(),
        api_keys=ApiKeys(),
        audit=Audit(),
        comments=comments,
        standings=Standings(scripts),
        polls=polls,
        reactions=Reactions(scripts),
        products=products,
        stock=stock,
        approvals=approvals,
        budgets=budgets,
        costs=costs,
        incidents=incidents,
        guards=guards,
        coupons=coupons,
        periodic_gifts=PeriodicGifts(addresses, timezone=settings.timezone),
        campaigns=campaigns,
        savings=SavingsMeter(plans, member_day=member_day),
        quotes=quotes,
        offers=offers,
        orders=orders,
        payments=payments,
        refunds=refunds,
        plan_refunds=PlanRefunds(
            payments,
            orders,
            plans,
            seats,
            member_day=quotes.member_day,
            later="pro_rata" if settings.plan_refund_later == "pro_rata" else "end",
        ),
        fulfilment=Fulfilment(orders),
        after_sales=AfterSales(orders, refunds, notices),
        provider=provider,
        refused_webhooks=RefusedWebhooks(),
        seats=seats,
        benefits=benefits,
        claims=Claims(scripts, notices, database.transaction, grants, refunds.give),
        receipts=Receipts(settings.secret),
        rooms=rooms,
        shows=shows,
        cues=Cues(offers, benefits, polls, comments, products, shows),
        meter=meter,
        report=Report(comments, polls, shows, meter),
        show_log=ShowLog(redis, scripts),
        queue=queue,
    )


def _member_day(settings: Settings) -> MemberDay | None:
    """The shop's day of the month for members, if it has one."""
    if not settings.member_day:
        return None
    return MemberDay(settings.member_day, settings.member_day_percent, zone=settings.timezone)


def _provider(settings: Settings) -> PaymentProvider:
    """The one payment provider of this deployment. Raises SettingsError."""
    if settings.payment_provider == "wechat":
        from commerce.wechat import WechatProvider

        return WechatProvider(
            mchid=settings.wechat_mchid,
            appid=settings.wechat_appid,
            cert_serial=settings.wechat_cert_serial,
            apiv3_key=settings.wechat_apiv3_key,
            keys=wechat_keys(
                settings.wechat_private_key, settings.wechat_public_key, settings.wechat_public_key_id
            ),
            public_url=settings.public_url,
            notify_url=settings.wechat_notify_url,
            gateway=settings.wechat_gateway,
        )
    outside = settings.sandbox and settings.sandbox_url
    return SandboxProvider(
        settings.secret,
        settings.public_url,
        base_url=settings.sandbox_url or None,
        page_url=f"{settings.public_url}/sandbox" if outside else None,
    )


async def close_parts(parts: Parts) -> None:
    await parts.database.settle()
    await parts.queue.close_async()
    await parts.pool.close()
    await parts.redis.aclose()


def open_tail(settings: Settings) -> NodeClients:
    """The clients that wait in XREAD."""
    return open_tail_clients(settings.redis_url, block_s=BLOCK_MS / 1000)


def create_app(parts: Parts, node: Node | None = None) -> Starlette:
    """HTTP: the API, the pages, static files, and the sandbox provider where it is switched on."""

    def not_ready() -> str | None:
        return "This process is draining." if node is not None and node.draining else None

    def degraded() -> list[str]:
        return [] if node is None else node.degraded()

    routes: list[BaseRoute] = [
        *http_routes(parts, not_ready, degraded),
        *page_routes(parts),
        *panel_routes(parts),
    ]
    if parts.settings.sandbox:
        from live.sandbox import create_forward, create_sandbox

        settings = parts.settings
        routes.append(
            Mount(
                "/sandbox",
                app=create_forward(settings.sandbox_url)
                if settings.sandbox_url
                else create_sandbox(
                    settings.secret, settings.data_dir / "sandbox.sqlite", timezone=settings.timezone
                ),
            )
        )
    routes.append(Mount("/static", app=StaticFiles(directory=STATIC)))
    app: Any = Starlette(routes=routes)
    app.state.parts = parts
    app.state.node = node
    return app  # type: ignore[no-any-return]
