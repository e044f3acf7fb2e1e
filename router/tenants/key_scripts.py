"""The scripts that keep API keys in Redis, one an operation; `tests/support/fake_keys.py` says the same in Python, and a test plays both.

KEYS: keys (id -> record, JSON as a line of a keys file; "" -> the stamp of the last change), log (a stream of the last changes: entry
`version-0` has the stamp, and the ids that were changed). A stamp is `version:tag`: a counter, and letters that nobody else makes, so
that a store which has lost a change and counts on from before it is not taken for the one that had it.
"""

from typing import Final

# ARGV: stamp of what the asker knows, records at most, about. Returns stamp, number of keys, whether that is all, records; without the last
# two where the log does not reach back so far: then all must be read again.
CHANGES: Final = """
local head = redis.call('HGET', KEYS[1], '') or ''
local count = redis.call('HLEN', KEYS[1])
if head ~= '' then count = count - 1 end
if head == ARGV[1] then return {head, count, 1, {}} end
local version = string.match(ARGV[1], '^(%d+):')
if head == '' or not version then return {head, count} end
local most = tonumber(ARGV[2])
local entries = redis.call('XRANGE', KEYS[2], version .. '-0', '+', 'COUNT', most + 1)
if not entries[2] or entries[1][2][2] ~= ARGV[1] then return {head, count} end
if #entries <= most and entries[#entries][2][2] ~= head then return {head, count} end
local records, stamp = {}, ''
for i = 2, #entries do
  local fields = entries[i][2]
  stamp = fields[2]
  for j = 4, #fields, 2 do records[#records + 1] = redis.call('HGET', KEYS[1], fields[j]) or '' end
  if #records >= most then break end
end
return {stamp, count, stamp == head and 1 or 0, records}
"""

# ARGV: cursor, how many, about. Returns the next cursor (0: that was all) and records, a line each; some may come twice.
PAGE: Final = """
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local flat, lines = found[2], {}
for i = 1, #flat, 2 do
  if flat[i] ~= '' then lines[#lines + 1] = flat[i + 1] end
end
return {found[1], table.concat(lines, '\\n')}
"""

# ARGV: tag, channel, how many changes are kept, about; then id, record before (empty: none), record from now on, and so on.
# Returns the stamp; nothing where another was faster, and then nothing has changed.
PUT: Final = """
for i = 4, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return '' end
end
local head = redis.call('HGET', KEYS[1], '')
if not head then redis.call('DEL', KEYS[2]) end
local version = string.format('%.0f', (head and tonumber(string.match(head, '^(%d+):')) or 0) + 1)
local stamp = version .. ':' .. ARGV[1]
local entry = {'XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], version .. '-0', 'stamp', stamp}
for i = 4, #ARGV, 3 do entry[#entry + 1], entry[#entry + 2] = 'id', ARGV[i] end
redis.call(unpack(entry))
for i = 4, #ARGV, 3 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
redis.call('HSET', KEYS[1], '', stamp)
redis.call('PUBLISH', ARGV[2], stamp)
return stamp
"""

# ARGV: ids. Returns their records; empty: none.
GET: Final = """
local found = {}
for i = 1, #ARGV do found[i] = redis.call('HGET', KEYS[1], ARGV[i]) or '' end
return found
"""
