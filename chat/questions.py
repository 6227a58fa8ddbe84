"""The questions among comments: which lines ask, which ask the same, and what is asked most."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import msgspec


class Question(msgspec.Struct, frozen=True):
    """One thing that was asked: in the words most used, and by how many people."""

    text: str
    askers: int
    times: int
    alike: tuple[str, ...] = ()  # other wordings, most used first, at most five


_LINK = re.compile(r"https?://\S+|www\.\S+")  # its question mark asks nothing
_ASKING = re.compile(
    r"[?？]|[吗嘛么]\W*$|怎么|怎样|咋|什么|啥|多少|多久|多大|多重|几[个天号点斤袋款年月次种钱折]|哪[个款里儿些种天]"
    r"|能不能|可不可以|可以不|有没有|有木有|是不是|会不会|要不要|好不好|行不行|为什么|为啥|如何|何时|请问|求问|想问"
)
_ASKING_ENGLISH = re.compile(
    r"^(how|what|when|where|who|why|which|can|could|does|do|is|are|will|would|should|any)\b", re.IGNORECASE
)
_NO_QUESTION = re.compile(r"没什么|不怎么|什么的$|没啥")
# What kind of answer is asked for; questions of two kinds are never alike. The first that fits counts.
_KINDS = (
    ("price", re.compile(r"多少钱|什么价|啥价|价格|怎么卖|几块|几元|how much|price", re.IGNORECASE)),
    ("when", re.compile(r"什么时候|啥时候|何时|几天|几点|多久|多长时间|when|how long", re.IGNORECASE)),
    ("why", re.compile(r"为什么|为啥|why", re.IGNORECASE)),
    ("where", re.compile(r"哪里|哪儿|在哪|where", re.IGNORECASE)),
    ("how", re.compile(r"怎么样?|怎样|如何|咋|how", re.IGNORECASE)),
    ("amount", re.compile(r"多少|多大|多重|几[个斤袋款年月次种]", re.IGNORECASE)),
    ("what", re.compile(r"什么|啥|哪[个款些种]|what|which", re.IGNORECASE)),
)
# Words that carry no matter of their own: without them two wordings of one question look alike.
_FILLERS = re.compile(
    r"请问|求问|想问|问一下|一下|主播|老板|老师|客服|亲|你们|我们|这个|那个|这款|那款|一共|到底|可不可以|可以|能不能"
    r"|有没有|是不是|会不会|[啊呀呢吗嘛么吧哦噢哈的了是有就都也还我你能会]"
)
_ALIKE = 0.5  # twice the common pairs over all pairs of both
_DISTINCT_MAX = 2_000  # different wordings compared; the rarer ones are left out


def is_question(text: str) -> bool:
    """Whether a comment asks something: a question mark, or a word that asks, outside of links."""
    plain = _LINK.sub("", text).strip()
    if not plain:
        return False
    if _ASKING_ENGLISH.match(plain):
        return True
    return bool(_ASKING.search(_NO_QUESTION.sub("", plain)))


class _Matter(msgspec.Struct, frozen=True):
    """What a wording asks: the kind of answer, the names it names, and its letter pairs."""

    kind: str
    names: frozenset[str]
    pairs: frozenset[str]

    def alike(self, other: _Matter) -> bool:
        if self.kind != other.kind or self.names != other.names:
            return False
        if self.pairs == other.pairs:
            return True
        return 2 * len(self.pairs & other.pairs) >= _ALIKE * (len(self.pairs) + len(other.pairs))


def _matter(text: str, names: Sequence[str]) -> _Matter:
    plain = _LINK.sub(" ", unicodedata.normalize("NFKC", text).lower())
    named = frozenset(name for name in names if name in plain)
    for name in named:
        plain = plain.replace(name, " ")
    kind = ""
    for word, pattern in _KINDS:
        if pattern.search(plain):
            kind, plain = word, pattern.sub(" ", plain)
            break
    letters = "".join(char if char.isalnum() else " " for char in _FILLERS.sub(" ", plain))
    pairs: set[str] = set()
    for run in letters.split():
        if run.isascii():
            pairs.add(run)
        else:
            pairs.update(run[index : index + 2] for index in range(max(1, len(run) - 1)))
    return _Matter(kind, named, frozenset(pairs))


def top_questions(
    said: Sequence[tuple[str, str]], limit: int = 5, names: Sequence[str] = ()
) -> list[Question]:
    """The questions among (person, text), the most asked first.

    Same wordings are counted together. Then, from the most used down, a wording joins the first group whose
    head asks for the same kind of answer (price, time, way …), names the same `names` (products), and
    shares at least half of its letter pairs; else it heads a group. A group counts each person once.
    """
    askers: dict[str, set[str]] = {}
    times: Counter[str] = Counter()
    for person, text in said:
        if is_question(text):
            askers.setdefault(text, set()).add(person)
            times[text] += 1
    known = [name.lower() for name in names if name]
    wordings = sorted(askers, key=lambda text: (-len(askers[text]), len(text), text))[:_DISTINCT_MAX]
    groups: list[tuple[_Matter, list[str]]] = []
    for text in wordings:
        matter = _matter(text, known)
        for head, members in groups:
            if head.alike(matter):
                members.append(text)
                break
        else:
            groups.append((matter, [text]))
    found = [
        Question(
            text=members[0],
            askers=len(set[str]().union(*(askers[text] for text in members))),
            times=sum(times[text] for text in members),
            alike=tuple(members[1:6]),
        )
        for _, members in groups
    ]
    return sorted(found, key=lambda question: (-question.askers, -question.times, question.text))[:limit]
