"""What a crowd says: believable lines of people who buy groceries, by what is on air."""

from __future__ import annotations

import random

GREETINGS = (
    "来啦来啦", "刚下班赶上了", "主播晚上好", "老粉报到", "第一次来，先看看", "带着我妈一起看", "声音很清楚",
    "画面好舒服", "今天讲什么呀", "等了一晚上了", "会员来报到了", "从朋友圈过来的", "厨房收拾完就来了",
)  # fmt: skip
CHAT = (
    "上次买的还没吃完又来囤了", "家里老人很喜欢", "孩子说比外面的香", "物流挺快的，第二天就到",
    "包装很结实没破", "我家一个月一袋", "已经回购三次了", "煮出来满屋子香",
    "同事推荐我来的", "这价格可以", "先加个会员再说",
    "主播讲得很细", "屏幕前流口水了", "冬天就想喝口热的", "给爸妈也寄一份", "果然还是这家放心",
)  # fmt: skip
QUESTIONS = (
    "保质期多久呀？", "新疆发货吗？", "什么时候发货？", "有检测报告吗？", "会员一年多少钱？", "运费怎么算？",
    "不好吃可以退吗？", "老人糖高能吃吗？", "可以开发票吗？", "赠品是每单都有吗？", "试用到期会自动扣钱吗？",
)  # fmt: skip
BY_WORD: dict[str, tuple[str, ...]] = {
    "大米": (
        "五常的吗？",
        "是今年的新米吗？",
        "这个米煮粥香不香？",
        "5kg 够三口之家吃多久？",
        "蒸饭水放多少？",
        "米粒好长",
    ),
    "粥": (
        "有没有加糖？",
        "要提前泡吗？",
        "红枣口味的有吗？",
        "孩子能喝吗？",
        "早上来一碗舒服",
        "十种杂粮都有啥？",
    ),
    "酱油": ("低钠的咸不咸？", "零添加是真的吗？", "炒菜上色好吗？", "有没有小瓶？", "我爸高血压能吃吗？"),
    "面": ("煮多久？", "会不会坨？", "石磨的面香一些", "宝宝能吃吗？", "一把够几个人？"),
    "油": ("是非转基因的吗？", "烟大不大？", "小榨的香！", "1.8L 多少钱？", "凉拌行不行？"),
    "芝麻": ("含糖吗？", "开水冲就行？", "会结块吗？", "给我妈买的，养头发", "九蒸是怎么个蒸法？"),
}
ON_BENEFIT = (
    "冲冲冲",
    "前一百名有我吗",
    "手快有手慢无",
    "已经开通了！",
    "还剩几个？",
    "厨房三件套实用",
    "排第几啊我",
)
ON_FLASH = (
    "抢到了！",
    "手慢了…",
    "还有吗？",
    "这个价太香了",
    "倒计时开始紧张了",
    "拍了两份",
    "怎么一下就没了",
)
ON_POLL = ("我投了红枣", "山药养胃！", "必须红枣", "两个都想要可以吗", "投完了，看看结果", "我家都爱山药")
ON_JOIN = ("开通会员了，值！", "会员价省了不少", "会员打卡", "试用先用着")


def line(chance: random.Random, on_air: str, mood: str) -> str:
    """One line. `on_air`: name of the product shown; `mood`: calm, benefit, flash, poll."""
    draw = chance.random()
    if mood == "benefit" and draw < 0.5:
        return chance.choice(ON_BENEFIT)
    if mood == "flash" and draw < 0.5:
        return chance.choice(ON_FLASH)
    if mood == "poll" and draw < 0.5:
        return chance.choice(ON_POLL)
    for word, lines in BY_WORD.items():
        if word in on_air and draw < 0.65:
            return chance.choice(lines)
    if draw < 0.75:
        return chance.choice(CHAT)
    return chance.choice(QUESTIONS if draw < 0.9 else GREETINGS)


PRODUCTS = (
    "五常大米", "黑芝麻丸", "低钠酱油", "石磨挂面", "小榨花生油", "红枣山药粥", "有机小米", "葛根粉",
    "枸杞原浆", "核桃仁", "银耳羹", "藜麦饭", "燕麦片", "亚麻籽油", "海鸭蛋", "丹东草莓",
)  # fmt: skip
COUNTED = (
    "{product}拍了{n}份，什么时候发？",
    "上次的{product}吃了{n}天还没完",
    "{product} {n}斤装多少钱？",
    "我要{n}袋{product}！",
    "给我妈寄了{n}盒{product}",
    "{product}保质期有{n}个月吗",
    "刚下单尾号{n}，麻烦快点发",
    "我是第{n}个吗？",
    "{n}号链接的{product}还有货吗？",
    "{product}比上个月便宜{n}块，划算",
    "家里{n}口人，{product}买几份合适",
    "{line}",
    "{product}{line}",
    "{line} {n}",
)


def varied(chance: random.Random) -> str:
    """One line of a busy evening: with products and numbers, so that few are alike."""
    said = line(chance, chance.choice(PRODUCTS), "calm")
    return chance.choice(COUNTED).format(
        product=chance.choice(PRODUCTS), n=chance.randint(1, 9_999), line=said
    )
