"""Does a response have anything to do with the request? Only the plainest misses are told.

An answer to another question neither refuses nor answers this one. It is seen by its words: none
of the request's content words, in any inflection, although the response is long, or announces
another topic ("Here are some trivia questions …"). Short answers say "yes" in words of their own,
so they are left alone, and most answers to another question pass unseen for it. Both texts must be
English; which of two requests in one prompt is answered, and whether well, is not looked at.
"""

import re

#: Content words that a request must have before their absence says anything.
REQUEST_WORDS = 2
#: Distinct content words of a response from which absence is telling, and the least product of
#: both numbers: the chances to meet that were missed.
RESPONSE_WORDS, CHANCES = 50, 150
#: Share of words that mark a text as English.
ENGLISH_SHARE = 0.15

_FUNCTION_WORDS = frozenset(
    """
    a about after again all also am an and any are as at be because been before being between both
    but by can could did do does doing don't down during each every few for from further had has
    have having he her here hers him his how i if in into is it it's its just me more most much my
    no nor not of off on once only or other our out over own same she should so some such than that
    the their them then there these they this those through to too under until up us very was we
    were what when where which while who whom whose why will with without would yes you your yours
    """.split()
)
# Words of asking and answering, which every topic shares.
_ASKING_WORDS = frozenset(
    """
    able answer ask best certain classic come common compare create describe detail difference
    different discuss effective example explain find following generate get give good got great
    guide hello help hey idea instruction know let like list long look made main make many may might
    must need new one people person please popular possible possibly produce provide question
    quick reply request say share short show simple simply someone something step suggest sure take
    tell thank thing think three tip tool top two use user using want way well write
    """.split()
)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_ENDINGS = (
    *("izations", "ization", "isation", "ational", "ations", "ation", "ments", "ment", "ingly"),
    *("ness", "ities", "ity", "ings", "ing", "edly", "ies", "ied", "ers", "er", "ed", "es", "ly"),
    *("s", "e", "y"),
)
_ANNOUNCEMENT = re.compile(
    r"\A\W*(?:(?:sure|certainly|of course|absolutely|ok(?:ay)?)\b\W*)?"
    r"(?:here(?:'s| is| are)|below (?:is|are))\s(?P<what>[^.:!?\n]+)",
    re.IGNORECASE,
)


def off_topic(prompt: str, response: str) -> str | None:
    """Say how a response has nothing to do with the request, or None where it may.

    Args:
        prompt: The request by itself: one that refers to earlier turns names no topic.
        response: The response.
    """
    if not (_is_english(prompt) and _is_english(response)):
        return None
    wanted, said = content_words(prompt), content_words(response)
    if _meet(wanted, said):
        return None
    if len(wanted) < REQUEST_WORDS:
        return None
    if len(said) >= RESPONSE_WORDS and len(wanted) * len(said) >= CHANCES:
        return f"off topic: none of the request's {len(wanted)} content words among {len(said)}"
    announced = _ANNOUNCEMENT.match(response)
    if announced and content_words(announced["what"]):
        return f"off topic: announces '{announced['what'].strip()[:80]}'"
    return None


def share_words(one: str, other: str) -> bool:
    """Whether two texts have a content word in common, in any inflection."""
    return _meet(content_words(one), content_words(other))


def content_words(text: str) -> frozenset[str]:
    """Stems of the words that carry a topic."""
    words = _WORD.findall(text.lower().replace("’", "'"))
    stems = {_stem(word.removesuffix("'s")) for word in words if word not in _FUNCTION_WORDS}
    return frozenset(stem for stem in stems if len(stem) >= 3 and stem not in _ASKING_STEMS)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


_ASKING_STEMS = frozenset(map(_stem, _ASKING_WORDS))


def _alike(one: str, other: str) -> bool:
    """Whether two stems may be of one word: three quarters of the shorter in common."""
    shorter, longer = sorted((one, other), key=len)
    n = max(4, -(-3 * len(shorter) // 4))
    return one == other or (len(shorter) >= 4 and shorter[:n] == longer[:n])


def _meet(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether a stem of one may be of the same word as a stem of the other."""
    return any(_alike(a, b) for a in one for b in other)


def _is_english(text: str) -> bool:
    words = _WORD.findall(text.lower().replace("’", "'"))
    return sum(word in _FUNCTION_WORDS for word in words) >= ENGLISH_SHARE * max(1, len(words))
