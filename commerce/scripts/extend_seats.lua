-- include: commerce/seats
-- Prolongs the seats that are held while the switch for money is on: each seat once in its life.
--
-- KEYS  as in seats.lua; benefit:<id> has 'extended': the incident whose seats were seen to
-- ARGV  1 id · 2 incident · 3 ms
-- Returns {'ok', seats prolonged}; refused: unavailable
-- All or none. The same incident again changes nothing.
local gone = benefit_guard() if gone then return gone end
if redis.call('HGET', B, 'extended') == ARGV[2] then return {'ok', 0} end
redis.call('HSET', B, 'extended', ARGV[2])
local prolonged = 0
for _, member in ipairs(redis.call('ZRANGEBYSCORE', HELD, '(' .. string.format('%.0f', NOW), '+inf')) do
  if redis.call('HSETNX', B, 'longer:' .. member, ARGV[2]) == 1 then
    local until_ms = tonumber(redis.call('ZSCORE', HELD, member)) + tonumber(ARGV[3])
    redis.call('ZADD', HELD, string.format('%.0f', until_ms), member)
    tell(member, 'held', until_ms, nil, 1)
    prolonged = prolonged + 1
  end
end
return {'ok', prolonged}
