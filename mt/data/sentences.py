"""Split a line into sentences by its punctuation.

The same rule counts the sentences per training line and splits long lines for translation, so its
mistakes affect both in the same way.
"""

import re

# A full stop in a script that needs no space after it, such as Chinese, Japanese or Burmese,
# followed by any closing quotes and brackets.
_UNSPACED_END = "[。！？｡።။།](?:[」』”’）〉》】\"')\\]]*)\\s*"
# One or more full stops, any closing quotes and brackets, and white space before the next word.
# `_is_end` checks that this word does not start with a lowercase letter.
_SPACED_END = "[.!?…؟۔।॥։៕]+[\"'”’»)\\]]*\\s+(?=[\"'“‘„«(\\[¿¡]*(?:[-–—] ?)?[^\\W_])"
_END = re.compile(f"{_UNSPACED_END}|{_SPACED_END}")
_LAST_WORD = re.compile(r"[^\W_][\w.'’-]*$")
_ABBREVIATION_TEXT = """
abb abs art bd bsp bzw ca cf chr co corp dept dipl dr ed eds e.g eg etc ev evtl fig figs ff fr gen
gov hr hrsg i.e ie inc ing jr jun kap lt ltd max messrs min mio mlle mme mr mrd mrs ms no nos nr op
p pp prof pt rep resp rev s sen sgt sig sra sr st str tel u.a u.s usw v vgl vol vs z.b zb
д г гг др им пр ст стр т тел ул
"""
_ABBREVIATIONS = frozenset(_ABBREVIATION_TEXT.split())


def sentence_starts(text: str) -> list[int]:
    """Return where each sentence starts, as character positions. The first position is 0."""
    starts = [0]
    for match in _END.finditer(text):
        if match.end() < len(text) and _is_end(text, match):
            starts.append(match.end())
    return starts


def _is_end(text: str, match: re.Match[str]) -> bool:
    stop = match[0].rstrip()
    following = text[match.end() :].lstrip("\"'“‘„«([¿¡-–— ")
    if following[:1].islower():
        return False
    if stop != ".":
        return True
    word = _LAST_WORD.search(text[max(0, match.start() - 40) : match.start()])
    if word is None:
        return True
    last = word[0]
    is_initial, is_ordinal = len(last) == 1 and last.isalpha(), last.isdigit() and len(last) <= 2
    return not (is_initial or is_ordinal or last.lower() in _ABBREVIATIONS)
