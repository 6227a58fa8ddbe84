-- Tell a show what has become of an order, after the commit. Each step of an order is told once.
--
-- KEYS[8] offers       see open_offer.lua
-- KEYS[9] people       see hold_offer.lua
-- KEYS[10] holds       see hold_offer.lua
-- KEYS[11] unsettled   see hold_offer.lua
-- KEYS[12] told        set: '<order>:<step>'
-- KEYS[13] buyers      set: members who paid for something in this show
-- ARGV[1] order
-- ARGV[2] step         'placed', 'paid' (held pieces are sold) or 'closed' (held pieces come back)
-- ARGV[3] member
-- ARGV[4] lock         see hold_offer.lua
-- ARGV[5…] lines of five: offer ('' for none), pieces it takes of the offer (0 for none), audience bit,
--          event JSON ('' for none), behaviour record JSON ('' for none)
-- Returns {'ok', '1'}, or {'ok', '0'} for a step already told; refused: unavailable.
-- All or none. A hold that is not there (the counters were rebuilt, or the pieces had come back before late
-- money) is made anew from the lines, so that what PostgreSQL says is what is counted.
local gone = guard()
if gone then return gone end
local OFFERS, PEOPLE, HOLDS, UNSETTLED, TOLD = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local order, step, member = ARGV[1], ARGV[2], ARGV[3]
redis.call('ZREM', UNSETTLED, order)
if redis.call('SADD', TOLD, order .. ':' .. step) == 0 then return {'ok', '0'} end
-- Late money opens an order that had ended: its end is still to come, and will be told.
if step == 'paid' then
  redis.call('SREM', TOLD, order .. ':closed')
  redis.call('SADD', KEYS[13], member)
end

local function touch(offer)
  if redis.call('HGET', OFFERS, offer .. '|status') == 'open' then touch_state('offer:' .. offer) end
end

local record = redis.call('HGET', HOLDS, order)
local hold = record and cjson.decode(record)
-- A 'placed' that comes late, after the order's end was told, holds nothing any more.
local over = step == 'placed' and redis.call('SISMEMBER', TOLD, order .. ':closed') == 1
if not hold and step ~= 'closed' and not over then
  local lines = {}
  for i = 5, #ARGV, 5 do
    local offer, pieces = ARGV[i], tonumber(ARGV[i + 1])
    if pieces > 0 then
      count('offer:' .. offer, 'held', pieces)
      redis.call('HINCRBY', PEOPLE, offer .. '|' .. member, pieces)
      lines[#lines + 1] = {offer, pieces}
    end
  end
  if #lines > 0 then hold = {m = member, l = ARGV[4], s = 'h', o = lines} end
  if hold then redis.call('HSET', HOLDS, order, cjson.encode(hold)) end
end

if hold and hold.s == 'h' and step ~= 'placed' then
  for _, line in ipairs(hold.o) do
    local offer, pieces = line[1], line[2]
    local key = 'offer:' .. offer
    count(key, 'held', -pieces)
    if step == 'paid' then
      count(key, 'sold', pieces)
    else
      redis.call('HINCRBY', PEOPLE, offer .. '|' .. hold.m, -pieces)
    end
    touch(offer)
  end
  if step == 'paid' then
    hold.s = 's'
    redis.call('HSET', HOLDS, order, cjson.encode(hold))
  else
    redis.call('HDEL', HOLDS, order)
  end
end

for i = 5, #ARGV, 5 do
  if ARGV[i + 3] ~= '' then append(tonumber(ARGV[i + 2]), ARGV[i + 3]) end
  behave(ARGV[i + 4])
end

if step == 'paid' and hold then
  for _, line in ipairs(hold.o) do
    local offer, key = line[1], 'offer:' .. line[1]
    local found = redis.call('HMGET', OFFERS, offer .. '|status', offer .. '|quota', offer .. '|shown',
      offer .. '|gone_parts', offer .. '|bit', offer .. '|gone_event')
    local quota = tonumber(found[2] or '')
    if found[1] == 'open' and found[3] == 'open' and quota and get_count(key, 'sold') >= quota then
      redis.call('HSET', OFFERS, offer .. '|shown', 'sold_out')
      put_state(key, found[4])
      append(tonumber(found[5]), found[6], true)
    end
  end
end
return {'ok', '1'}
