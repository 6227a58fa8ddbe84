-- Shared part of every script of a benefit (included before it): its keys, its free seats, who is told.
--
-- KEYS (after the spine)
--   8 benefit:<id>           hash: generation, show (META.generation when built), version, status, reason, quota, needs,
--                            per_person, bit, starts_at and closes_at (ms or ''), seat_ms, confirmed, ranked, changes, freed, sold_told;
--                            'took:<member>': token of the call that took the seat now held;
--                            'longer:<member>': that hold was prolonged, once in its life;
--                            'counted:<rank>': counted as confirmed when built, not yet announced
--   9 benefit:<id>:claims    hash: member -> '37' or '37,41', ranks decided or confirmed
--  10 benefit:<id>:held      zset: member -> until (ms)
--  11 benefit:<id>:settling  hash: decided, its row not yet known to be committed. needs join: member ->
--                            'since|until|place|token'; else: rank -> 'since|member|nth|key'
--  12 benefit:<id>:queue     zset: member -> place
--  13 benefit:<id>:had       set: members who have had their seat
--  14 benefit:<id>:outbox    list of changes of seats (JSON) to be written to PostgreSQL and told
--  15 benefit:<id>:told      bitmap by rank: announced
--  16 benefit:<id>:spare     zset: ranks decided, never told, and given back
-- ARGV
--   1 the benefit's id
-- Invariant after every script: confirmed + held + settling <= quota.
local B, CLAIMS, HELD, SETTLING, QUEUE, HAD, OUTBOX, TOLD, SPARE =
  KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15], KEYS[16]
local ID = ARGV[1]
local STATE = 'benefit:' .. ID
local function read_terms()
  local found = redis.call('HMGET', B, 'generation', 'show', 'version', 'status', 'reason', 'needs', 'bit', 'closes_at')
  return {generation = found[1], show = found[2], version = found[3], status = found[4], reason = found[5],
    needs = found[6], bit = found[7], closes_at = found[8]}
end
local terms = read_terms()

-- The counters are whole only in the show's generation they were built in.
local function missing()
  return not terms.generation or terms.show ~= redis.call('HGET', META, 'generation')
end

local function benefit_guard()
  local gone = guard()
  if gone then return gone end
  if missing() then return refused('unavailable', 1000) end
  return nil
end

local function number(field) return tonumber(redis.call('HGET', B, field) or '0') end
local function held_count() return redis.call('ZCARD', HELD) + redis.call('HLEN', SETTLING) end
local function free_seats() return number('quota') - number('confirmed') - held_count() end

-- '' when open, else the word: paused or closed.
local function shut()
  if terms.status == 'paused' then return 'paused' end
  if terms.status ~= 'open' then return 'closed' end
  if redis.call('HEXISTS', META, 'incident') == 1 then return 'paused' end
  if terms.closes_at ~= '' and NOW >= tonumber(terms.closes_at) then return 'closed' end
  return ''
end

-- One change of one seat, numbered, for PostgreSQL and the member.
local function tell(member, state, until_ms, place, longer)
  local change = redis.call('HINCRBY', B, 'changes', 1)
  redis.call('RPUSH', OUTBOX, cjson.encode({v = change, member = member, state = state,
    ['until'] = until_ms and string.format('%.0f', until_ms) or '', place = place and string.format('%.0f', place) or '',
    longer = longer or 0}))
  return change
end

local function hold(member, state, token)
  local until_ms = NOW + number('seat_ms')
  redis.call('ZADD', HELD, string.format('%.0f', until_ms), member)
  if token then redis.call('HSET', B, 'took:' .. member, token) end
  redis.call('SADD', HAD, member)
  return until_ms, tell(member, state, until_ms)
end

-- The member's held seat is held no more. Returns 1, or 0 when none was.
local function let_go(member)
  redis.call('HDEL', B, 'took:' .. member)
  return redis.call('ZREM', HELD, member)
end

-- Seats whose time is over come back; then the queue's heads get what is free, in order. Returns how many of each.
local function sweep()
  local lapsed, served = 0, 0
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', HELD, '-inf', string.format('%.0f', NOW))) do
    let_go(member)
    redis.call('HINCRBY', B, 'freed', 1)
    tell(member, 'lapsed')
    lapsed = lapsed + 1
  end
  if shut() == '' then
    local free = free_seats()
    while free > 0 do
      local head = redis.call('ZPOPMIN', QUEUE)
      if not head[1] then break end
      hold(head[1], 'served')
      free = free - 1
      served = served + 1
    end
  end
  return lapsed, served
end

-- What viewers see; touches the state once when any number changed.
local function show_counts()
  local now = {confirmed = number('confirmed'), held = held_count(), queued = redis.call('ZCARD', QUEUE)}
  local changed = false
  for _, field in ipairs({'confirmed', 'held', 'queued'}) do
    if redis.call('HGET', COUNTS, STATE .. '|' .. field) ~= tostring(now[field]) then
      set_count(STATE, field, now[field])
      changed = true
    end
  end
  if changed then touch_state(STATE) end
end

-- Which word, when nothing is free: a seat may still come back, or none can.
local function full() return held_count() > 0 and 'reserved_out' or 'sold_out' end
