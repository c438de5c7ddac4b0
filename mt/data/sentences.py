"""Where a line may be cut in two: the ends of its sentences, by punctuation alone.

Training counts sentences, and translating cuts lines, by the same rule: what it takes for an end
that is none, it takes so in both.
"""

import re

# Sentences without spaces between them: Chinese and Japanese, and stops of scripts that need no
# space after them.
_UNSPACED_END = "[。！？｡።။།](?:[」』”’）〉》】\"')\\]]*)\\s*"
# One or more stops, closing quotes and brackets, white space; what follows must not be a small
# letter.
_SPACED_END = "[.!?…؟۔।॥։៕]+[\"'”’»)\\]]*\\s+(?=[\"'“‘„«(\\[¿¡]*(?:[-–—] ?)?[^\\W_])"
_END = re.compile(f"{_UNSPACED_END}|{_SPACED_END}")
_LAST_WORD = re.compile(r"[^\W_][\w.'’-]*$")
_ABBREVIATION_TEXT = """
abb abs art bd bsp bzw ca cf chr co corp dept dipl dr ed eds e.g eg etc ev evtl fig figs ff fr gen gov hr hrsg i.e ie inc ing jr jun kap
lt ltd max messrs min mio mlle mme mr mrd mrs ms no nos nr op p pp prof pt rep resp rev s sen sgt sig sra sr st str tel u.a u.s usw v
vgl vol vs z.b zb д г гг др им пр ст стр т тел ул
"""
_ABBREVIATIONS = frozenset(_ABBREVIATION_TEXT.split())


def sentence_starts(text: str) -> list[int]:
    """Where the sentences of a line begin; the first is 0."""
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
