"""Recognises the plain content deltas of a stream, nearly all of it, by their bytes alone.

One choice, one text, no finish reason, no usage; whatever else an event may be is for `router.openai.chunks` to parse. Pure.
"""

import re
from typing import Final

# Well-formed UTF-8 beyond ASCII (RFC 3629): what is not would end a client's decoder, so such events are looked at, and refused.
_WIDE = (
    rb"[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)
# The group is there where the string says something.
_STRING = rb'"((?:[^"\\\x00-\x1f\x80-\xff]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|' + _WIDE + rb')++)?"'
_NULLS = rb'(?:,"[a-z_]{1,40}":null)*+'
# The token ids of `return_token_ids`: the whole member, and what stands in its brackets.
_IDS = rb'(?:(,"token_ids":\[(\d+(?:,\d+)*+)?\])' + _NULLS + rb")?"
_END = _NULLS + _IDS + rb"\}\]" + _NULLS + rb"\}\n\n"
# What follows `"choices":[{"index":` in a delta that needs no look.
PLAIN_CHAT: Final = re.compile(
    rb'(\d{1,4}),"delta":\{"(?:content|(reasoning|reasoning_content))":' + _STRING + rb"\}" + _END
)
PLAIN_TEXT: Final = re.compile(rb'(\d{1,4}),(?:"text"|((?!))):' + _STRING + _END)  # which has no reasoning
ID_MEMBER: Final = 4  # the number of its group
CHOICES: Final = b'"choices":[{"index":'
