"""The scripts of tenants' limits that run in Redis, one an operation. `router.tenants.shared_limit_book` says the same in Python, and a test plays both.

A window is a list: where its oldest slot is, the sum of all, and slot, amount, slot, amount..., oldest first; what is before the oldest is
forgotten, and removed when it is much: a call costs what it changes, but for reading and writing the list. `now` and `server` are given in tests only.
"""

from typing import Final

from router.tenants.shared_limit_book import FORGOTTEN_MS, SLOT_MS, SPAN_MS

_RECORD_MS: Final = 180_000  # longer than anything in it counts; who holds places says so more often (shared_lease)
_PURSE_MS: Final = 70 * 86_400_000  # a month, and then some to look at it


def _with_numbers(script: str) -> str:
    numbers = {
        "MANY": 200,  # numbers of forgotten slots that are carried along
        "SPAN": SPAN_MS,
        "SLOT": SLOT_MS,
        "FORGOTTEN": FORGOTTEN_MS,
        "RECORD_LASTS": _RECORD_MS,
        "PURSE_LASTS": _PURSE_MS,
    }
    for name, number in numbers.items():
        script = script.replace(name, str(number))
    return script


# KEYS: life (of the book, in the field ""), processes (instance -> when heard, number); then two a claim: the tenant's record, in the
# field "", and its month's dollars (instance -> billionths)
# ARGV: instance, number, epoch, lease_ms, settle_ms, claims, now, server
# life: server, epoch, last_ms, frozen_ms, born_ms. A record: epoch, requests, tokens, {instance: batch, at_ms, requests, tokens, places}
CLAIM: Final = _with_numbers("""
local instance, number, knew = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lease, settle, claims = tonumber(ARGV[4]), tonumber(ARGV[5]), cmsgpack.unpack(ARGV[6])
local now, server = tonumber(ARGV[7]), ARGV[8]
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end
local packed = redis.call('HGET', KEYS[1], '')
local life = packed and cmsgpack.unpack(packed) or {'', '', 0, 0, 0}
if life[1] ~= server or now < life[3] - settle then
  life = {server, string.format('%s:%.0f', server, now), now, life[2] ~= '' and now + lease + settle or 0, now}
end
if knew ~= '' and knew ~= life[2] and now < life[5] + lease + settle then life[4] = life[5] + lease + settle end
now = math.max(now, life[3])

local heard, flat = {}, redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do heard[flat[i]] = cmsgpack.unpack(flat[i + 1]) end
if now - life[3] > settle then
  for other, known in pairs(heard) do
    known[1] = now
    redis.call('HSET', KEYS[2], other, cmsgpack.pack(known))
  end
end
life[3] = now
redis.call('HSET', KEYS[1], '', cmsgpack.pack(life))
if heard[instance] and number <= heard[instance][2] then return {'stale'} end
heard[instance] = {now, number}
redis.call('HSET', KEYS[2], instance, cmsgpack.pack(heard[instance]))
for other, known in pairs(heard) do
  if now - known[1] > FORGOTTEN then redis.call('HDEL', KEYS[2], other) end
end
local frozen = now < life[4]
if knew ~= life[2] then return {'new', life[2], now, frozen and 1 or 0, {}} end

local function gone(slot) return (slot + 1) * SLOT + SPAN end
local function forget(window)
  local first = window[1]
  while first < #window and gone(window[first]) <= now do
    window[2] = window[2] - window[first + 1]
    first = first + 2
  end
  window[1] = first
  if first < MANY then return window end
  local kept = {3, window[2]}
  for i = first, #window do kept[#kept + 1] = window[i] end
  return kept
end
local function add(window, used)
  for i = 1, #used, 2 do
    local slot, amount = used[i], used[i + 1]
    if gone(slot) > now then
      local at = #window - 1
      while at >= window[1] and window[at] > slot do at = at - 2 end
      if at >= window[1] and window[at] == slot then
        amount = math.max(0, window[at + 1] + amount) - window[at + 1]
        window[at + 1] = window[at + 1] + amount
        window[2] = window[2] + amount
      elseif amount > 0 then
        table.insert(window, at + 2, slot)
        table.insert(window, at + 3, amount)
        window[2] = window[2] + amount
      end
    end
  end
end
local function told(window, least, left)
  local last = #window - 1
  while last >= window[1] and window[last + 1] == 0 do last = last - 2 end
  local reset = last >= window[1] and gone(window[last]) - now or 0
  local short, wait = least - left, 0
  if short > 0 then
    wait = SPAN
    for i = window[1], #window, 2 do
      short = short - window[i + 1]
      if short <= 0 then
        wait = gone(window[i]) - now
        break
      end
    end
  end
  return math.max(0, left), reset, wait
end

local grants = {}
for i, entry in ipairs(claims) do
  local limits, batch, used, wanted, least, held, usd = unpack(entry)
  local key, purse = KEYS[1 + 2 * i], KEYS[2 + 2 * i]
  packed = redis.call('HGET', key, '')
  local record = packed and cmsgpack.unpack(packed)
  if not record or record[1] ~= knew then record = {knew, {3, 0}, {3, 0}, {}} end
  record[2], record[3] = forget(record[2]), forget(record[3])
  local lent = record[4][instance] or {0, 0, 0, 0, 0}
  if batch > lent[1] then
    lent[1] = batch
    add(record[2], used[1])
    add(record[3], used[2])
  end
  local elsewhere = {0, 0, 0}
  for other, theirs in pairs(record[4]) do
    if other ~= instance then
      local counts = now < theirs[2] + lease + SPAN + SLOT
      local lives = heard[other] and now - heard[other][1] <= lease + settle
      if counts then
        elsewhere[1], elsewhere[2] = elsewhere[1] + theirs[3], elsewhere[2] + theirs[4]
      end
      if lives then elsewhere[3] = elsewhere[3] + theirs[5] end
      if not counts and not lives then record[4][other] = nil end
    end
  end
  local sums = {record[2][2], record[3][2], held}
  local free, given = {0, 0, 0}, {}
  for j = 1, 3 do
    if limits[j] > 0 and not frozen then free[j] = limits[j] - sums[j] - elsewhere[j] end
    given[j] = math.max(0, math.min(wanted[j], free[j]))
  end
  if given[2] < least then given[2] = 0 end
  record[4][instance] = {lent[1], now, given[1], given[2], held + given[3]}
  redis.call('HSET', key, '', cmsgpack.pack(record))
  redis.call('PEXPIRE', key, RECORD_LASTS)
  local spent = 0
  if usd >= 0 then
    redis.call('HSET', purse, instance, string.format('%.0f', usd))
    redis.call('PEXPIRE', purse, PURSE_LASTS)
    for _, one in ipairs(redis.call('HVALS', purse)) do spent = spent + tonumber(one) end
  end
  local left, reset, wait = told(record[2], 1, free[1] - given[1])
  local token_left, token_reset, token_wait = told(record[3], least, free[2] - given[2])
  grants[i] = {given[1], given[2], held + given[3], left, reset, wait, token_left, token_reset, token_wait, spent}
end
return {'ok', life[2], now, frozen and 1 or 0, grants}
""")

# KEYS: processes; then two a tenant, as above; ARGV: instance
LEAVE: Final = """
redis.call('HDEL', KEYS[1], ARGV[1])
for i = 2, #KEYS, 2 do
  local packed = redis.call('HGET', KEYS[i], '')
  if packed then
    local record = cmsgpack.unpack(packed)
    record[4][ARGV[1]] = nil
    redis.call('HSET', KEYS[i], '', cmsgpack.pack(record))
  end
  local spent = redis.call('HGET', KEYS[i + 1], ARGV[1])
  if spent then
    redis.call('HINCRBY', KEYS[i + 1], '', spent)
    redis.call('HDEL', KEYS[i + 1], ARGV[1])
  end
end
return 1
"""
