-- Hold pieces of one or more offers for one order, before the order's transaction. Several lines all or none.
-- Offers without a quota only count. A closed offer still holds: open quotes are honoured.
--
-- KEYS[8] offers       see open_offer.lua
-- KEYS[9] people       hash: '<offer>|<member>' -> pieces held and bought by that person
-- KEYS[10] holds       hash: order -> {"m":member,"l":lock,"s":"h"|"s","o":[[offer,pieces],…]} (h held, s sold)
-- KEYS[11] unsettled   zset: order -> ms after which a hold whose order was never told is looked at
-- ARGV[1] order        its id; the same order again changes nothing
-- ARGV[2] member
-- ARGV[3] lock         what the order's transaction has locked: while it is locked the order may yet commit
-- ARGV[4] settle_ms    from now
-- ARGV[5…] offer, pieces, offer, pieces, …
-- Returns {'ok', 'held'} or {'ok', 'again'}; refused: unavailable, sold_out (none left, none can come back),
-- reserved_out (unpaid orders hold the rest), limit_reached (per person, or fewer left than asked),
-- paused (selling is).
-- All or none.
local gone = whole_guard()
if gone then return gone end
local OFFERS, PEOPLE, HOLDS, UNSETTLED = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local order, member = ARGV[1], ARGV[2]
if redis.call('HGET', OFFERS, 'generation') ~= redis.call('HGET', META, 'generation') then
  return refused('unavailable', 1000, 'the offers are being rebuilt')
end
if redis.call('HEXISTS', HOLDS, order) == 1 then return {'ok', 'again'} end

local incident = redis.call('HGET', META, 'incident')
if incident then return refused('paused', nil, incident) end

for i = 5, #ARGV, 2 do
  local offer, pieces = ARGV[i], tonumber(ARGV[i + 1])
  local found = redis.call('HMGET', OFFERS, offer .. '|status', offer .. '|quota', offer .. '|per_person')
  if not found[1] then return refused('unavailable', 1000) end
  local quota, per_person = tonumber(found[2]), tonumber(found[3])
  if quota then
    local key = 'offer:' .. offer
    local sold, held = get_count(key, 'sold'), get_count(key, 'held')
    if sold >= quota then return refused('sold_out') end
    if sold + held + pieces > quota then
      if sold + pieces > quota then
        return refused('limit_reached', nil, 'fewer pieces are left than you ask for')
      end
      return refused('reserved_out', 5000, 'the rest is held by unpaid orders; some may come back')
    end
  end
  if per_person then
    local own = tonumber(redis.call('HGET', PEOPLE, offer .. '|' .. member) or '0')
    if own + pieces > per_person then
      return refused('limit_reached', nil, 'at most ' .. per_person .. ' a person')
    end
  end
end

local lines = {}
for i = 5, #ARGV, 2 do
  local offer, pieces = ARGV[i], tonumber(ARGV[i + 1])
  count('offer:' .. offer, 'held', pieces)
  redis.call('HINCRBY', PEOPLE, offer .. '|' .. member, pieces)
  if redis.call('HGET', OFFERS, offer .. '|status') == 'open' then touch_state('offer:' .. offer) end
  lines[#lines + 1] = {offer, pieces}
end
redis.call('HSET', HOLDS, order, cjson.encode({m = member, l = ARGV[3], s = 'h', o = lines}))
redis.call('ZADD', UNSETTLED, string.format('%.0f', NOW + tonumber(ARGV[4])), order)
return {'ok', 'held'}
