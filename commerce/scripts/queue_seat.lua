-- include: commerce/seats
-- Stands in line for a seat that may come back, or leaves the line.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 member · 3 'join' or 'leave' · 4 longest queue allowed
-- Returns {'ok', 'queued', how many are before} · {'ok', 'held', until ms} when a seat is free now or held already ·
--         {'ok', 'left', 0}; refused sold_out, already_claimed, limit_reached, paused, closed
-- All or none. Standing in line twice keeps the first place.
local gone = benefit_guard() if gone then return gone end
local member = ARGV[2]
sweep()
local function answer(word, value)
  show_counts()
  return {'ok', word, value and string.format('%.0f', value) or '0'}
end
local function decline(code, message)
  show_counts()
  return refused(code, nil, message)
end

if ARGV[3] == 'leave' then
  if redis.call('ZREM', QUEUE, member) == 1 then tell(member, 'left') end
  return answer('left')
end
if redis.call('HEXISTS', CLAIMS, member) == 1 or redis.call('HEXISTS', SETTLING, member) == 1 then
  return decline('already_claimed', 'You have this benefit already.')
end
local until_ms = redis.call('ZSCORE', HELD, member)
if until_ms then return answer('held', tonumber(until_ms)) end
if redis.call('SISMEMBER', HAD, member) == 1 then
  return decline('limit_reached', 'A seat is given once to a person.')
end
local ahead = redis.call('ZRANK', QUEUE, member)
if ahead then return answer('queued', ahead) end
local word = shut()
if word ~= '' then return decline(word, terms.reason ~= '' and terms.reason or nil) end
if free_seats() > 0 then return answer('held', (hold(member, 'held'))) end
if full() == 'sold_out' then return decline('sold_out') end
ahead = redis.call('ZCARD', QUEUE)
if ahead >= tonumber(ARGV[4]) then return decline('limit_reached', 'The queue is full.') end
local place = redis.call('HINCRBY', B, 'places', 1)
redis.call('ZADD', QUEUE, place, member)
tell(member, 'queued', nil, place)
return answer('queued', ahead)
