-- include: commerce/seats
-- The payment was not recorded after all: its seat is held again until its time, or comes free; who stood in line
-- stands there again.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 member · 3 token of the recording, '' for any
-- Returns {'ok', 'held' | 'free' | 'none'}
-- All or none. Another recording's token leaves the seat alone.
local gone = benefit_guard() if gone then return gone end
local member = ARGV[2]
local settling = redis.call('HGET', SETTLING, member)
if not settling then return {'ok', 'none'} end
local until_ms, place, token = string.match(settling, '^%d+|(%d*)|(%d*)|(.*)$')
if ARGV[3] ~= '' and ARGV[3] ~= token then return {'ok', 'none'} end
redis.call('HDEL', SETTLING, member)
local word = 'free'
if place ~= '' then redis.call('ZADD', QUEUE, place, member) end
if until_ms ~= '' and tonumber(until_ms) > NOW then
  redis.call('ZADD', HELD, until_ms, member)
  word = 'held'
elseif until_ms ~= '' then
  tell(member, 'lapsed')
end
if word == 'free' then redis.call('HINCRBY', B, 'freed', 1) end
sweep()
show_counts()
return {'ok', word}
