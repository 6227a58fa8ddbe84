"""The sample brand of the demo: 穗里人家, six products, a year's plan, two rooms, and a prepared evening."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from commerce.freight import FreightRow
from commerce.products import Product, ProductInput
from live.cues import CueInput
from live.rooms import Room, RoomInput
from live.shows import Show, ShowInput
from membership.actor import PERMISSIONS, Actor, RoomId, ShowId, StaffId
from membership.audience import PLAN_MEMBERS
from membership.plans import PlanInput
from membership.transaction import Transaction, lock

if TYPE_CHECKING:
    from live.parts import Parts

SHOP: Final = "穗里人家"
OWNER: Final = "穗里人家 主播小禾"
CROWD_KEY: Final = "crowd of the demo"
STARTS_IN: Final = timedelta(minutes=10)
BUILDER: Final = Actor(kind="job", id="brand", name="brand", role="owner", permissions=PERMISSIONS["owner"])

BUDGET_FEN: Final = 2_000_000  # what the gifts of one evening may cost

PRODUCTS: Final = (
    ProductInput(
        sku="SL-RICE-5",
        name="有机大米 5kg",
        short="五常核心产区，当季新米，真空小包",
        unit="袋",
        image="/static/demo/rice.svg",
        list_fen=12_800,
        member_fen=10_900,
        cost_fen=6_200,
        stock=600,
        tag_name="有机大米",
        gift_text="杂粮试吃装 5 包",
        gift_value_fen=1_500,
    ),
    ProductInput(
        sku="SL-PORRIDGE",
        name="十谷杂粮粥 1.2kg",
        short="十种谷物，免泡，二十分钟出锅",
        unit="袋",
        image="/static/demo/porridge.svg",
        list_fen=3_990,
        member_fen=3_290,
        cost_fen=1_500,
        stock=800,
        tag_name="杂粮粥",
    ),
    ProductInput(
        sku="SL-SOY",
        name="低钠酱油 500ml",
        short="减盐三成，只用水、大豆、小麦和盐",
        unit="瓶",
        image="/static/demo/soy.svg",
        list_fen=2_980,
        member_fen=2_480,
        cost_fen=1_100,
        stock=500,
        tag_name="低钠酱油",
    ),
    ProductInput(
        sku="SL-NOODLE",
        name="有机挂面 800g",
        short="石磨小麦，三煮不浑汤",
        unit="把",
        image="/static/demo/noodles.svg",
        list_fen=2_690,
        cost_fen=1_100,
        stock=900,
        tag_name="有机挂面",
    ),
    ProductInput(
        sku="SL-OIL",
        name="浓香菜籽油 1.8L",
        short="小榨头道，非转基因",
        unit="桶",
        image="/static/demo/oil.svg",
        list_fen=6_990,
        member_fen=5_990,
        cost_fen=3_000,
        stock=400,
        tag_name="菜籽油",
    ),
    ProductInput(
        sku="SL-SESAME",
        name="黑芝麻糊 600g",
        short="九蒸九晒，新品会员首发",
        unit="罐",
        image="/static/demo/sesame.svg",
        list_fen=4_590,
        member_fen=3_890,
        member_price_audience=PLAN_MEMBERS,
        audience=PLAN_MEMBERS,
        cost_fen=1_800,
        stock=300,
        tag_name="黑芝麻糊",
    ),
)

PLAN: Final = PlanInput(
    name="穗里年卡",
    fee_fen=19_900,
    period_months=12,
    trial_days=7,
    percent=88,
    gift_text="每月尝鲜装、生日礼盒、营养师一对一",
)


class Demo(msgspec.Struct, frozen=True, kw_only=True):
    """Where the demo can be entered."""

    show: ShowId
    members_show: ShowId
    owner: StaffId
    panel_link: str  # single use, ten minutes
    crowd_key: str


def cues_of(products: dict[str, Product]) -> list[CueInput]:
    """The prepared evening: one key each, every price and number decided beforehand."""

    def cue(shortcut: str, kind: Any, label: str, **payload: Any) -> CueInput:
        return CueInput(kind=kind, title=label, shortcut=shortcut, payload=payload)

    return [
        cue("A", "pin", "讲解 有机大米", product=products["SL-RICE-5"].id),
        cue(
            "B",
            "benefit",
            "前 100 名开通会员送厨房三件套",
            title="前 100 名开通会员 送厨房三件套",
            text="今晚开播后首次开通年卡的前 100 名，填好收货地址即寄出，价值 59 元。",
            what="gift",
            value_fen=5_900,
            quota=100,
            needs="join",
        ),
        cue(
            "C",
            "poll",
            "下一款粥加什么",
            question="下一款杂粮粥，大家希望加红枣还是山药？",
            choices=["红枣", "山药", "都要"],
        ),
        cue(
            "D",
            "flash",
            "限时 菜籽油 49.9",
            product=products["SL-OIL"].id,
            flash_fen=4_990,
            quota=60,
            per_person=2,
            seconds=180,
        ),
        cue("E", "pin", "讲解 杂粮粥", product=products["SL-PORRIDGE"].id),
        cue(
            "F",
            "benefit",
            "会员抢 试吃装 30 份",
            title="会员限量试吃装 30 份",
            text="会员专享，先到先得，填好收货地址即寄出。",
            what="gift",
            value_fen=1_500,
            quota=30,
            needs="nothing",
            audience={"kind": "plan_members"},
        ),
        cue(
            "G",
            "pin",
            "会员首发 黑芝麻糊",
            product=products["SL-SESAME"].id,
            audience={"kind": "plan_members"},
        ),
        cue("H", "announcement", "公告 发货时间", text="今晚下单，明天 16:00 前从仓库发出。"),
    ]


FREIGHT = (
    FreightRow(flat_fen=800, free_from_fen=9_900, days_min=2, days_max=4),
    FreightRow(region="新疆", flat_fen=2_000, days_min=5, days_max=9),
    FreightRow(region="西藏", flat_fen=2_000, days_min=6, days_max=10),
)


async def load(parts: Parts) -> Demo:
    """Make what is not there yet; a show that has ended is followed by a new one."""
    async with parts.database.transaction() as t:
        await lock(t.conn, "brand")
        products = await _products(parts, t)
        if not await parts.quotes.freight.is_set(t.conn):
            await parts.quotes.freight.set(t, BUILDER, FREIGHT)
        if not await parts.plans.all(t.conn):
            await parts.plans.create(t, PLAN)
        open_room = await _room(parts, t, "huiyuan-jiankang-ye", RoomInput(
            title="会员健康夜", slug="huiyuan-jiankang-ye", host_name="小禾"
        ))  # fmt: skip
        members_room = await _room(parts, t, "huiyuan-zhuanchang", RoomInput(
            title="会员专场", slug="huiyuan-zhuanchang", host_name="小禾", audience=PLAN_MEMBERS
        ))  # fmt: skip
        show = await _show(
            parts, t, open_room, "秋收专场：新米上市夜", "今年的新米、十谷粥和小榨菜籽油，边煮边聊。"
        )
        members_show = await _show(
            parts, t, members_room, "会员尝鲜日：黑芝麻糊首发", "只给会员的首发，九蒸九晒怎么做。"
        )
    async with parts.database.transaction() as t:
        for made in (show, members_show):
            if not await parts.cues.list(t.conn, made.id):
                await parts.cues.put(t, BUILDER, made.id, cues_of(products))
                await parts.budgets.set(t, BUILDER, "show", made.id, BUDGET_FEN)
    for made, live in ((show, False), (members_show, True)):
        await _bring_on(parts, made, live)
    async with parts.database.transaction() as t:
        owner = await _owner(parts, t)
        return Demo(
            show=show.id,
            members_show=members_show.id,
            owner=owner,
            panel_link=await parts.staff.sign_in_link(t, owner),
            crowd_key=await _crowd_key(parts, t),
        )


async def _products(parts: Parts, t: Transaction) -> dict[str, Product]:
    found = await parts.products.list(t.conn, limit=100)
    known = {product.sku: product for product in found.items}
    for given in PRODUCTS:
        if given.sku not in known:
            known[given.sku] = await parts.products.create(t, BUILDER, given)
    return known


async def _room(parts: Parts, t: Transaction, slug: str, given: RoomInput) -> Room:
    for room in await parts.rooms.list(t.conn):
        if room.slug == slug:
            return room
    return await parts.rooms.create(t, BUILDER, given)


async def _show(parts: Parts, t: Transaction, room: Room, title: str, summary: str) -> Show:
    for show in (await parts.shows.list(t.conn, room=RoomId(room.id))).items:
        if show.status != "ended":
            return show
    return await parts.shows.create(
        t,
        BUILDER,
        ShowInput(
            room=room.id,
            title=title,
            summary=summary,
            starts_at=datetime.now(UTC) + STARTS_IN,
            video_url="/static/demo/loop.mp4",
            video_kind="mp4",
            poster_url="/static/demo/poster.jpg",
        ),
    )


async def _bring_on(parts: Parts, show: Show, live: bool) -> None:
    """The open room waits for its host; the members' room is on air."""
    async with parts.database.transaction() as t:
        now = await parts.shows.get(t.conn, show.id)
        if now.status == "scheduled":
            now = await parts.shows.open(t, BUILDER, show.id)
    if live and now.status == "waiting":
        async with parts.database.transaction() as t:
            await parts.shows.start(t, BUILDER, show.id)


async def _owner(parts: Parts, t: Transaction) -> StaffId:
    for account in await parts.staff.list(t.conn):
        if account.name == OWNER:
            return account.id
    return (await parts.staff.create(t, OWNER, "owner")).id


async def _crowd_key(parts: Parts, t: Transaction) -> str:
    """A new key at each start: only its digest is stored, so an old one cannot be shown again."""
    for key in await parts.api_keys.list(t.conn):
        if key.name == CROWD_KEY and key.revoked_at is None:
            await parts.api_keys.revoke(t, key.id)
    return (await parts.api_keys.create(t, CROWD_KEY, ["member.write", "member.read"])).secret
