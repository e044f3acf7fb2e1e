"""The scripts that run in Redis, one an operation. What `batching` says the same in Python, a test plays beside it.

Keys share a hash tag, so that they live in one slot of a cluster. Numbers are whole; a table travels as MessagePack. `now` and `server`
are given in tests only: else the time is Redis' own, and the server its `run_id`, which a restart and a failover change.
"""

from typing import Final

from batching.prefix_log import EACH_BYTES
from batching.shelf import KEEP_MS, MOST_KEPT, MOST_READ

# KEYS: book (name -> record; "" -> the book itself), words (name -> what the others read), notices
# ARGV: name, instance, number, lease_ms, settle_ms, forget_ms, static, wishes, known, join, words, stamp, now, server, channel (of
# those who are short, to call the others; empty: nobody is)
# A record: instance, number, heard_ms, lease_ms, settle_ms, forget_ms, static, lapsed, suspect, {replica: {bound, in use}}
REPORT: Final = """
local name, instance, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease, settle, forget, static = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local wishes, known, join = cmsgpack.unpack(ARGV[8]), cmsgpack.unpack(ARGV[9]), ARGV[10]
local now, server = tonumber(ARGV[13]), ARGV[14]
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end
local records, meta, changed = {}, {'', 0, 0}, {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do
  if flat[i] == '' then meta = cmsgpack.unpack(flat[i + 1]) else records[flat[i]] = cmsgpack.unpack(flat[i + 1]) end
end

if meta[1] ~= server then
  meta[1], meta[3] = server, now + lease + settle
  for other, record in pairs(records) do
    record[3], record[8], record[9], changed[other] = now, 0, 1, true
  end
elseif now < meta[2] or now - meta[2] > settle then
  for other, record in pairs(records) do record[3], changed[other] = now, true end
  meta[3] = meta[2] <= meta[3] and now + lease + settle or 0
end
meta[2] = now
redis.call('HSET', KEYS[1], '', cmsgpack.pack(meta))

local gone = {}
for other, record in pairs(records) do
  local silent = now - record[3]
  if silent > record[6] + record[5] then
    gone[#gone + 1] = other
  elseif silent > record[4] + record[5] and record[8] == 0 then
    record[8], changed[other] = 1, true
    for _, entry in pairs(record[10]) do entry[1], entry[2] = math.min(entry[1], record[7]), 0 end
  end
end
for _, other in ipairs(gone) do
  records[other], changed[other] = nil, nil
  redis.call('HDEL', KEYS[1], other)
  redis.call('HDEL', KEYS[2], other)
end

local frozen, own, status = now <= meta[3], records[name], 'ok'
if own and own[9] == 0 and own[1] ~= instance then
  if join == '' or (join == 'again' and own[8] == 0) then status = 'superseded' end
  own = nil
elseif own and own[1] == instance and number <= own[2] then
  status = 'stale'
end
if status == 'ok' then
  if frozen then
    for other, kept in pairs(known) do
      if other ~= name and not records[other] then
        records[other], changed[other] = {'', -1, now, lease, settle, forget, kept, 0, 1, {}}, true
      end
    end
  end
end
local bounds = {}
if status == 'ok' then
  local entries = {}
  for replica, wish in pairs(wishes) do
    local bound, target = wish[1], wish[3]
    local trusted = own and own[9] == 0
    if trusted then
      bound = math.min(bound, own[10][replica] and own[10][replica][1] or 0)
    end
    if not frozen and (target > bound or not trusted) then
      local free = WHOLE
      for other, record in pairs(records) do
        if other ~= name then
          local entry = record[10][replica]
          if record[9] == 1 then free = free - record[7]
          elseif entry then free = free - math.max(entry[1], entry[2]) end
        end
      end
      free = math.max(0, free)
      if not trusted then bound = math.min(bound, free) end
      bound = math.max(bound, math.min(target, free))
    end
    entries[replica] = {bound, wish[2]}
    bounds[#bounds + 1], bounds[#bounds + 2] = replica, bound
  end
  records[name] = {instance, number, now, lease, settle, forget, static, 0, 0, entries}
  changed[name] = true
  redis.call('HSET', KEYS[2], name, ARGV[11])
end
for other in pairs(changed) do redis.call('HSET', KEYS[1], other, cmsgpack.pack(records[other])) end
if status ~= 'ok' then return {status} end
if ARGV[15] ~= '' then redis.call('PUBLISH', ARGV[15], name) end

local others = {}
for other, record in pairs(records) do
  if other ~= name then
    others[#others + 1], others[#others + 2] = other, cmsgpack.pack(record)
    others[#others + 1] = redis.call('HGET', KEYS[2], other) or ''
  end
end
local notices, stamp = false, redis.call('HGET', KEYS[3], '') or ''
if stamp ~= ARGV[12] then notices = redis.call('HGETALL', KEYS[3]) end
return {status, now, frozen and 1 or 0, bounds, others, stamp, notices}
""".replace("WHOLE", str(1 << 20))

# KEYS: book, words; ARGV: name, instance
LEAVE: Final = """
local packed = redis.call('HGET', KEYS[1], ARGV[1])
if packed and cmsgpack.unpack(packed)[1] == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return 1
"""

# KEYS: notices (replica -> number, body, deadline on Redis' clock; "" -> the stamp of all). ARGV: replica, number before, body, left_ms
# An empty body stays, too: it says that the replica may work again. Returns the number that stands from now on; negative, less one,
# where another stood than the teller thought.
NOTE: Final = """
local before = redis.call('HGET', KEYS[1], ARGV[1])
local number = before and cmsgpack.unpack(before)[1] or 0
if number ~= tonumber(ARGV[2]) then return -1 - number end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local left = tonumber(ARGV[4])
number = math.max(number + 1, now)
redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack({number, ARGV[3], left and now + left or 0}))
redis.call('HSET', KEYS[1], '', now .. ':' .. redis.sha1hex(ARGV[1] .. number))
return number
"""

# `batching.prefix_log.PrefixLog`. KEYS: the log (number-0 -> holder, digest), how many bytes it has
# ARGV: holder, digest (empty: nothing to say), after, bytes of an answer, bytes to keep, now. The log of a fleet that is silent for an
# hour is nothing that anybody would believe.
TELL: Final = """
local holder, digest, after, most, keep = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local number = function(entry) return tonumber(string.match(entry[1], '%d+')) end
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local last = newest and number(newest) or 0
if digest ~= '' then
  local now = tonumber(ARGV[6])
  if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
  local size = (newest and tonumber(redis.call('GET', KEYS[2]) or 0) or 0) + #digest + EACH
  last = math.max(last + 1, now)
  redis.call('XADD', KEYS[1], last .. '-0', holder, digest)
  while size > keep do
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
    if number(oldest) == last then break end
    redis.call('XDEL', KEYS[1], oldest[1])
    size = size - #oldest[2][2] - EACH
  end
  redis.call('SET', KEYS[2], size, 'PX', 3600000)
  redis.call('PEXPIRE', KEYS[1], 3600000)
end

if after > last then after = 0 end
local digests, size = {}, 0
while true do
  local page = redis.call('XRANGE', KEYS[1], (after + 1) .. '-0', '+', 'COUNT', 32)
  for _, entry in ipairs(page) do
    if size >= most then return {after, 1, digests} end
    after = number(entry)
    if entry[2][1] ~= holder then
      digests[#digests + 1] = entry[2][2]
      size = size + #entry[2][2]
    end
  end
  if #page < 32 then return {last, 0, digests} end
end
""".replace("EACH", str(EACH_BYTES))

# ARGV: channel, message
PUBLISH: Final = "return redis.call('PUBLISH', ARGV[1], ARGV[2])"

# `batching.shelf` says the same in Python. KEYS: learned (name -> when, body). ARGV: name, body, now (in tests)
_SHELF: Final = """
local now = tonumber(ARGV[#ARGV])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local function latest()
  local kept, flat = {}, redis.call('HGETALL', KEYS[1])
  for i = 1, #flat, 2 do
    local entry = cmsgpack.unpack(flat[i + 1])
    kept[#kept + 1] = {flat[i], entry[1], entry[2]}
  end
  table.sort(kept, function(a, b) return a[2] > b[2] or (a[2] == b[2] and a[1] < b[1]) end)
  return kept
end
"""

PUT: Final = (
    _SHELF
    + """
redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack({now, ARGV[2]}))
redis.call('PEXPIRE', KEYS[1], KEEP)
local left = 0
for _, entry in ipairs(latest()) do
  if now - entry[2] > KEEP or left >= MOST then redis.call('HDEL', KEYS[1], entry[1]) else left = left + 1 end
end
return left
""".replace("KEEP", str(KEEP_MS)).replace("MOST", str(MOST_KEPT))
)

READ: Final = (
    _SHELF
    + """
local found = {}
for _, entry in ipairs(latest()) do
  local age = math.max(0, now - entry[2])
  if age <= KEEP and #found < 3 * MOST then
    found[#found + 1], found[#found + 2], found[#found + 3] = entry[1], age, entry[3]
  end
end
return found
""".replace("KEEP", str(KEEP_MS)).replace("MOST", str(MOST_READ))
)
