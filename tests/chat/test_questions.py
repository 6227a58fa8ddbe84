"""Questions: known by their words, alike ones counted together."""

from __future__ import annotations

import pytest

from chat.questions import is_question, top_questions


@pytest.mark.parametrize(
    "text",
    [
        "大米多少钱",
        "几天能到?",
        "可以退吗",
        "有没有小包装",
        "请问孕妇能吃不",
        "怎么下单啊",
        "is it gluten free",
        "哪里发货",
    ],
)
def test_a_question_is_known_by_its_words(text: str) -> None:
    assert is_question(text)


@pytest.mark.parametrize(
    "text",
    ["好吃", "已下单", "没什么问题", "看 https://example.com/?q=1", "666", "主播好", "", "支持支持"],
)
def test_what_asks_nothing_is_no_question(text: str) -> None:
    assert not is_question(text)


def test_alike_questions_are_one_and_a_person_counts_once() -> None:
    said = [
        ("a", "大米多少钱一袋"),
        ("a", "大米多少钱一袋"),
        ("b", "请问大米一袋多少钱呢?"),
        ("c", "主播,大米多少钱一袋啊"),
        ("d", "小米多少钱一袋"),
        ("e", "什么时候发货"),
        ("f", "几天能发货啊?"),
        ("g", "好吃"),
    ]
    found = top_questions(said, names=["大米", "小米"])
    assert [(question.askers, question.times) for question in found] == [(3, 4), (2, 2), (1, 1)]
    assert found[0].text == "大米多少钱一袋"
    assert "请问大米一袋多少钱呢?" in found[0].alike
    assert {found[1].text, *found[1].alike} == {"什么时候发货", "几天能发货啊?"}
    assert found[2].text == "小米多少钱一袋"


def test_different_questions_stay_apart_and_only_the_asked_for_number_comes_back() -> None:
    said = [
        (str(number), text)
        for number, text in enumerate(
            ["怎么下单", "怎么退货", "能用优惠券吗", "包邮吗", "有赠品吗", "保质期多久", "哪里产的"]
        )
    ]
    assert len(top_questions(said, limit=100)) == 7
    assert len(top_questions(said)) == 5
    assert top_questions([]) == []
